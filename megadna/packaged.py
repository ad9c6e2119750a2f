"""The experiments and scripts that come with megadna: configs/ and launch/, in a clone and in an installed wheel alike.

megadna/configs and megadna/launch are links to these folders; a wheel holds copies of their files.
"""

from difflib import get_close_matches
from pathlib import Path

from megadna.errors import UserError

CONFIGS = Path(__file__).parent / "configs"
LAUNCH = Path(__file__).parent / "launch"


def configs() -> dict[str, Path]:
    """The YAML files by name: `demo`, `finetune/gue`, `layouts/aido-dna-7b-8`."""
    paths = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (len(path.relative_to(CONFIGS).parts), path))
    return {str(path.relative_to(CONFIGS).with_suffix("")): path for path in paths}


def scripts() -> dict[str, Path]:
    """The launch scripts by file name."""
    return {path.name: path for path in sorted(LAUNCH.iterdir()) if path.name != "demo.sh"}  # it needs the test genomes


def find_config(path: Path) -> Path:
    """The file itself if there is one; else the packaged config of that name (`demo`, `demo.yaml` or
    `configs/demo.yaml`). UserError where there is neither."""
    if path.exists() and not path.is_dir():
        return path
    known, name = configs(), str(path).removeprefix("configs/").removesuffix(".yaml")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "megadna configs lists those that come with it"
        raise UserError(f"{path}: no such config file; {hint}")
    return known[name]


def find_any(name: str) -> Path:
    """The packaged config or script of that name; UserError where there is none."""
    known = configs() | scripts()
    path = known.get(name.removeprefix("configs/").removesuffix(".yaml").removeprefix("launch/"))
    if path is None:
        raise UserError(f"megadna configs {name}: no such config or script; one of: {', '.join(known)}")
    return path
