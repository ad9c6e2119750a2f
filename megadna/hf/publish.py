"""Uploads an export to the Hugging Face hub: private unless asked otherwise, and never without a licence."""

from pathlib import Path

from huggingface_hub import HfApi

from megadna.errors import UserError, require


def check_upload(repository: str, license_name: str, *, public: bool) -> None:
    """UserError, before any work, where an upload that was asked for cannot be."""
    require(
        not repository or bool(license_name), "--push_to_hub needs --license: say under which licence others may use it"
    )
    require(not public or bool(repository), "--public belongs to --push_to_hub OWNER/NAME")


def upload(folder: Path, repository: str, *, public: bool) -> str:
    """Create the repository where it is missing and upload every file; return its address.

    The hub's address and the token come from where huggingface_hub looks for them (HF_ENDPOINT, HF_TOKEN).
    """
    hub = HfApi(library_name="megadna")
    try:
        url = hub.create_repo(repository, private=not public, exist_ok=True)
        visible = not hub.repo_info(repository).private
        if visible and not public:
            raise UserError(f"{repository} exists and is public; add --public, or name another repository")
        hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="Export by megadna")
    except UserError:
        raise
    except Exception as error:  # of the hub, or of whichever HTTP library it speaks through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} is written, but was not uploaded to {repository}: {reason}") from error
    return str(url)
