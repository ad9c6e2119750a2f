"""What a run folder contains: which folder is one, and which of its files megadna wrote."""

from pathlib import Path

from megadna.arguments import load_config
from megadna.errors import UserError
from megadna.ownership import Kind, read_mark

_CHECKPOINT = r"(state\.json|config\.yaml|complete|weights/(\.metadata|common\.pt|metadata\.json|[^/]+\.distcp))"
_FILES = "|".join(
    (
        r"(config\.yaml|(metrics|skipped)\.jsonl|log\.txt|\.running)",
        r"(baselines|evaluation-[^/]+)\.json",
        r"checkpoints/(latest|\.latest\.partial)",
        rf"checkpoints/step-\d+/{_CHECKPOINT}",
        r"checkpoints/damaged-step-\d+-[0-9a-f]{8}/.+",
        r"checkpoints/\.step-\d+\.[0-9a-f]{8}\.partial/.+",
        r"tensorboard/events\.out\.tfevents\.[^/]+",
        r"wandb/.+",
        r"profile/(steps|memory)-\d+-\d+\.(json|pickle|partial)",
        r"report/(report\.html|[a-z_]+\.png)",
    )
)


def is_run(folder: Path) -> bool:
    """Whether megadna has trained in `folder`: its mark is there, or what runs before there was a mark have."""
    if read_mark(folder).get("kind") == "run":
        return True
    if not any((folder / name).exists() for name in ("log.txt", "metrics.jsonl", "checkpoints")):
        return False
    try:
        load_config(folder / "config.yaml")
    except UserError:
        return False
    return True


RUN = Kind(name="run", files=lambda folder: _FILES if is_run(folder) else None)
