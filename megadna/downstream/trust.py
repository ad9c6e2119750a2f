"""What may be loaded of a Hugging Face folder that may come from a stranger.

In:  a folder.
Out: whether transformers may run the Python files in it: all of them are ours, character for character, and all names
     of code refer to them. UserError for anything that would lead transformers or peft to files not checked here.
transformers follows the auto_map of any JSON file, a second config named in the first (configuration_files), an
adapter's base model, and indexes of shards; only --trust_remote_code allows it.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from megadna.errors import UserError
from megadna.reading import read_json

MAX_JSON_BYTES = 1 << 24
_FEW = 200  # layers that any model may have, as layers may share tensors
_LABELS = 1_000_000
_OURS = ("configuration_megadna", "modeling_megadna", "tokenization_megadna", "modeling_dna_task")
_EARLIER = {
    "e22de68036c08f3b3c8dc9c77a68b5db961d1581121ace1a90fab3ab56921783",  # modeling_dna_task.py, special tokens pooled
    "1242ef68a5e2059588a9844f3f6cf61bf50303add39b7d952a8ce51857b3da5f",  # modeling_dna_task.py, without z-scores
    "0b0dcac79d7789045006803c6b6dc4bdf6f350104b722117f8fbfdd0ea7ccc4e",  # modeling_dna_task.py, without generation
    "657e8d2524174db20c9fa20aef0c865be82db78a08a8a6e8f6d4b79a5dfca8bf",  # modeling_megadna.py, special tokens pooled
    "e7d0add18249bb5fa1ea14d97e325e24f057373547ff1111bf8e957c8ce8afcd",  # configuration_megadna.py, without their ids
}
"""SHA-256 of files that earlier versions wrote: folders with them continue to give the same results."""
_PACKAGE = Path(__file__).parents[1]
_CLASS = re.compile(rf"({'|'.join(_OURS)})\.(\w+)")
_ENCODER = re.compile(
    rf"^from (transformers|\.(?:{'|'.join(_OURS)})) import (\w+) as (Encoder|EncoderConfig)\n", re.MULTILINE
)
_CONFIGS = re.compile(r"(config.*|.*_config|special_tokens_map)\.json")  # what transformers reads names of code from
_WEIGHTS = (".safetensors", ".bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SAY = "if you trust its author, say --trust_remote_code"


def check_folder(folder: Path) -> bool:
    """Whether transformers may run the folder's code, as it is ours; False if there is none.

    UserError if anything in the folder leads out of it: a second config, an adapter, a link, a shard given by its path.
    """
    _refuse_links(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: adapter_config.json: adapters are not read, as they name a model to load and modules to "
            f"import; merge it into its model first, or {_SAY}"
        )
    if (folder / "custom_generate").exists():
        raise UserError(f"{folder}: custom_generate is code, which is not run; remove it, or {_SAY}")
    for name in _INDEXES:
        if (folder / name).is_file():
            _check_index(folder / name)
    named: list[Any] = []
    for path in sorted(folder.glob("*.json")):
        if _CONFIGS.fullmatch(path.name):
            content = read_json(path, "fetch the folder again", limit=MAX_JSON_BYTES)
            _refuse_references(path, content)
            named += _code_names(content)
            if path.name == "config.json":
                _check_counts(folder, content)
    classes = [name for name in named if name is not None]
    return bool(classes) and all(_is_ours(folder, name) for name in classes) and _only_our_files(folder)


def _refuse_links(folder: Path) -> None:
    """UserError if an entry other than weights is a link out of the folder; the Hub's cache is a folder of links to its
    blobs."""
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for path in folder.iterdir():
        if path.is_symlink() and not path.name.endswith(_WEIGHTS):
            target = path.resolve()
            if home not in target.parents and blobs not in target.parents:
                raise UserError(f"{path}: a link out of the folder; copy the file there, or {_SAY}")


def _check_index(path: Path) -> None:
    """UserError if an index of shards names a file outside its folder."""
    names = read_json(path, "fetch the folder again").get("weight_map")
    if not isinstance(names, dict):
        raise UserError(f"{path}: no weight_map in it; fetch the folder again")
    for name in set(map(str, names.values())):
        if not _is_plain(name):
            raise UserError(f"{path}: {name[:80]!r} is not the name of a file of this folder; fetch the folder again")


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _refuse_references(path: Path, content: dict[str, Any]) -> None:
    """UserError if a JSON file makes transformers load another file, a kernel of the Hub, or a quantizer's library."""
    for key, value in _entries(content):
        leads = (
            (key == "configuration_files" and value)
            or (key == "transformers_weights" and value is not None and not _is_plain(value))
            or (key == "quantization_config" and value is not None)
            or (re.search("(attn|experts)_implementation", key) and re.search(r"[/:]", str(value)))
        )
        if leads:
            raise UserError(f"{path}: {key} leads to files that are not checked; remove it, or {_SAY}")


def _check_counts(folder: Path, content: dict[str, Any]) -> None:
    """UserError if config.json has more layers than the weights have tensors, or millions of labels: transformers
    creates an object for each before it reads the weights. Wrong sizes are harmless: it compares shapes first."""
    tensors = _FEW
    for path in folder.glob("*.safetensors"):
        with suppress(OSError, ValueError, SafetensorError), safe_open(path, "pt") as weights:
            tensors += len(weights.keys())
    for key, value in _entries(content):
        most = tensors if re.search(r"(layers?|depth)$", key) else _LABELS if key == "num_labels" else None
        if most is not None and isinstance(value, int | float) and value > most:
            raise UserError(f"{folder / 'config.json'}: {key} {value:.10g} does not fit the weights; fetch it again")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield from part.items()
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def _code_names(content: dict[str, Any]) -> Iterator[Any]:
    """What every auto_map names: `file.Class`, perhaps in a list, or something that is not a name."""
    for key, value in _entries(content):
        if key == "auto_map":
            names = list(value.values()) if isinstance(value, dict) else [value]
            for name in names:
                yield from name if isinstance(name, list) else [name]
        elif key in ("custom_pipelines", "custom_generate"):
            yield value


def _is_ours(folder: Path, name: Any) -> bool:
    """Whether `file.Class` is a class of one of our files, and the file is there."""
    found = _CLASS.fullmatch(name) if isinstance(name, str) else None
    if found is None or not (folder / f"{found[1]}.py").is_file():
        return False
    return re.search(rf"^class {found[2]}\b", _source(found[1]).read_text(encoding="utf-8"), re.MULTILINE) is not None


def _source(stem: str) -> Path:
    return _PACKAGE / ("downstream" if stem == "modeling_dna_task" else "hf") / f"{stem}.py"


def _only_our_files(folder: Path) -> bool:
    """Whether every Python file in the folder or below is ours, character for character, except for what our verbs
    change: the encoder that a fine-tuned model imports, and the model_type of an `aido` folder (hf/export.py)."""
    for path in folder.rglob("*.py"):
        if path.parent != folder or path.stem not in _OURS or not path.is_file():
            return False
        ours = _source(path.stem).read_text(encoding="utf-8")
        if path.stat().st_size > 2 * len(ours.encode()):
            return False
        text = path.read_bytes().decode(errors="replace")
        if path.stem == "modeling_dna_task":
            imported = [(name, role) for source, name, role in _ENCODER.findall(text) if source == "transformers"]
            if not all(_is_encoder(name, role) for name, role in imported):
                return False
            text = _ENCODER.sub("", text)
        text = text.replace('model_type = "rnabert"', 'model_type = "megadna"')
        if text != ours and hashlib.sha256(text.encode()).hexdigest() not in _EARLIER:
            return False
    return True


def _is_encoder(name: str, role: str) -> bool:
    """Whether transformers has a model, or a model's configuration, of that name."""
    found = getattr(transformers, name, None)
    kind = transformers.PreTrainedModel if role == "Encoder" else transformers.PretrainedConfig
    return isinstance(found, type) and issubclass(found, kind)
