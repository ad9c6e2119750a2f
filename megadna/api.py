"""The verbs of training as functions; `from megadna import preprocess, train, evaluate, export, report`.

Those of a finished model (embed, predict, finetune ...) are in megadna/downstream; megadna/__init__.py names all. A
mistake is a UserError, as on the command line. docs/api.md is made from the docstrings.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megadna.arguments import dump_config
from megadna.config import Config
from megadna.data.options import PreprocessOptions
from megadna.errors import RunEnded, UserError, require

if TYPE_CHECKING:
    import pandas as pd

    from megadna.data.manifest import Manifest

PathLike = Path | str


def preprocess(input: PathLike | Sequence[PathLike], output: PathLike, **options: Any) -> "Manifest":
    """Make a dataset folder of FASTA files and return its manifest (chunks and bases of each split, sources, notes).

    Keyword arguments are the fields of PreprocessOptions. A folder that is this dataset already is left as it is.
    """
    from megadna.data.builder import build_dataset

    inputs = [input] if isinstance(input, (Path, str)) else input
    unknown = sorted(options.keys() - PreprocessOptions.__dataclass_fields__.keys())
    require(not unknown, f"preprocess: {', '.join(unknown)}: no such option; see help(megadna.preprocess)")
    for name in ("sample_sheet", "include_bed", "exclude_bed"):
        options |= {name: Path(options[name])} if options.get(name) else {}
    chosen = PreprocessOptions(input=[Path(path) for path in inputs], output=Path(output), **options)
    return build_dataset(chosen)[0]


def train(
    config: Config | PathLike,
    data: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    keys: Mapping[str, Any] | None = None,
    resume: Literal["always", "auto", "never"] = "never",
    overwrite: bool = False,
) -> Path:
    """Train a run and return its folder.

    config: a Config, a YAML file, or the name of a packaged one. data: dataset folder or folders. keys: keys of the
    config to change, as {"train.steps": 200}. resume: go on from the newest checkpoint (`auto`: or start). RunEnded
    where training stopped before its last step; `resume="always"` goes on.
    """
    from megadna.commands import train as verb

    paths = str(data) if isinstance(data, (Path, str)) else [str(path) for path in data]
    changed = {**(keys or {}), "data.path": paths}
    with tempfile.TemporaryDirectory(prefix="megadna-") as folder:
        file = Path(config if isinstance(config, (Path, str)) else f"{folder}/config.yaml")
        if isinstance(config, Config):
            file.write_text(dump_config(config), encoding="utf-8")
        words = [f"--config={file}", f"--output={output}", *_words(changed)]
        words += [f"--resume={resume}"] * (resume != "never") + ["--overwrite"] * overwrite
        try:
            verb.main(words)
        except SystemExit as end:  # of ranks in processes of their own, or with everything saved
            if end.code:
                ended = f"{output}: ended before its last step with exit status {end.code}; {output}/log.txt says why"
                raise RunEnded(ended) from None
    return Path(output)


def evaluate(model: PathLike, *, data: PathLike | Sequence[PathLike] = "", **options: Any) -> "pd.DataFrame":
    """Masked bits per base of a run, checkpoint or Hugging Face folder, next to baselines, as a table.

    Columns: kind (model, group, baseline), name, bits_per_base, standard_error, perplexity, accuracy.
    data: dataset folder; without it the one the run was trained on. Keyword arguments are the other options of `megadna
    evaluate`: split ("test"), protocol, samples, seed, trust_remote_code, output. evaluation-SPLIT.json is written
    into the model's folder, or to output.
    """
    import pandas as pd

    from megadna.commands import evaluate as verb

    flag = ["--trust_remote_code"] * bool(options.pop("trust_remote_code", False))
    given = {"model": model, **({"data": data} if data else {}), **options}
    found, _ = verb.evaluation(verb.parsed([*_words(given), *flag]))
    scores = {"model": {str(model): found["model"]}, "group": found["groups"], "baseline": found["baselines"]}
    columns = ["bits_per_base", "standard_error", "perplexity", "accuracy"]
    rows = [(kind, name, *map(score.get, columns)) for kind, found in scores.items() for name, score in found.items()]
    return pd.DataFrame(rows, columns=["kind", "name", *columns])


def export(
    model: PathLike,
    output: PathLike,
    *,
    format: str = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    verify: bool = True,
    overwrite: bool = False,
    license: str = "",
) -> Path:
    """Write a checkpoint (of a run: the newest) as a Hugging Face folder and return it.

    UserError where the folder does not compute what megatron's model does; verify=False skips the comparison.
    """
    from megadna.hf.export import DTYPES
    from megadna.hf.export import export as write
    from megadna.train.checkpoint import find_checkpoint

    require(dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    settings = {"wanted": format, "dtype": dtype, "license_name": license}
    write(find_checkpoint(Path(model)), Path(output), check=verify, overwrite=overwrite, **settings)
    return Path(output)


def report(runs: PathLike | Sequence[PathLike], output: PathLike) -> Path:
    """Write one HTML page about one or several runs and return its path."""
    from megadna.train.report import read_runs
    from megadna.train.report_page import write_report

    folders = [Path(runs)] if isinstance(runs, (Path, str)) else [Path(run) for run in runs]
    write_report(read_runs(folders), Path(output))
    return Path(output)


def _words(options: Mapping[str, Any]) -> list[str]:
    """The options as words of a command line, each value as YAML would have it."""
    words = []
    for key, value in options.items():
        if not isinstance(key, str) or not key.replace("_", "").replace(".", "").isalnum():
            raise UserError(f"{key!r} is no key of a config; write it as train.steps")
        text = value if isinstance(value, (str, Path)) else json.dumps(value, default=str)
        words.append(f"--{key}={text}")
    return words
