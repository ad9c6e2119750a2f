"""Dataclasses <-> command line and YAML (jsonargparse); every mistake is one UserError that names the key."""

import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from megadna.config import Config, RateChange
from megadna.errors import UserError
from megadna.log import get_logger
from megadna.packaged import find_config
from megadna.reading import read_text
from megadna.wording import Help, explain

log = get_logger(__name__)

Options = TypeVar("Options")

# Given a string instead of a section, jsonargparse takes it for the dotted name of a class and imports its module: the
# author of a config would choose what runs. It still has to find the one class that is used in lists.
set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],
    import_path_allowlist=[f"{RateChange.__module__}.{RateChange.__qualname__}"],
)

MAX_INTEGER = (1 << 63) - 1
MAX_YAML_BYTES = 1 << 18
MAX_YAML_DEPTH = 50
MAX_YAML_DIGITS = 400
MAX_YAML_VALUES = 20_000
"""Values of a YAML file, each counted as often as aliases repeat it."""

REMOVED: dict[str, Any] = {
    "checkpoint.asynchronous": True,
    "checkpoint.optimizer_format": "reshardable",
    "data.blend.temperature": 1.0,
    "data.crop": "windows",
    "data.masking.choose_n": False,
    "data.masking.exact": False,
    "data.n_weight": 0.0,
    "faults.max_rollbacks": 2,
    "faults.max_skipped": 3,
    "faults.spike_zscore": 0.0,
    "log.memory_snapshot": False,
    "log.profile_steps": [],
    "train.batch_rampup": [],
    "train.end_weight_decay": None,
    "train.warmup_samples": 0,
    "train.weight_decay_schedule": "linear",
    "train.wsd_decay": "linear",
    "train.wsd_decay_steps": 0,
}
"""Keys of earlier versions, and the value that means what megadna does today: run folders hold it in config.yaml."""


def new_parser(command: str, description: str) -> ArgumentParser:
    """Parser of one verb; parse with `parse` below, never with its own parse_args."""
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": Help}
    return ArgumentParser(prog=f"megadna {command}", description=description, **settings)


def parse(parser: ArgumentParser, arguments: list[str], *, is_trained: bool = False) -> Namespace:
    """Parse and build the dataclasses; UserError with the key and a suggestion where something is wrong.

    is_trained: the config is that of a checkpoint; an option it was trained with and that is gone is only a warning.
    """
    arguments = spelled(parser, arguments)
    sections = _sections(parser)
    for key, value in _options(arguments):
        if key.removeprefix("--") in sections and not value.startswith("{"):
            raise UserError(f"{parser.prog}: {key} is a section; set its keys one by one, as {key}.KEY")
        if _YAML_SIGNS.search(value):
            with suppress(yaml.YAMLError):  # the parser takes text that is not YAML as it is
                _compose(value, f"{parser.prog}: {key}")
    for path in _refuse_repeats(parser, arguments):
        _check_yaml(path, sections)
    try:
        namespace = parser.parse_args(arguments)
        _drop_removed(namespace, where=_in_config(arguments), is_trained=is_trained)
        _refuse_huge(namespace)
        return parser.instantiate(namespace)
    except ArgumentError as error:
        raise UserError(explain(parser, str(error)) + _in_config(arguments)) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        message = "a section has a list or a value where keys belong" if "mapping" in str(error) else str(error)
        raise UserError(f"{parser.prog}: {message}{_in_config(arguments)}") from error


def spelled(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments with each option by its first name: `--dry-run` is `--dry_run`, an alias what it stands for, and
    `--data PATH` the key data.path; packaged configs (`--config demo`) by their path."""
    names = {option: _name(action) for action in parser._actions for option in action.option_strings}
    is_file = any(isinstance(action, ActionConfigFile) for action in parser._actions)
    words: list[str] = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if not word.startswith("--"):
            words.append(_config_named(word) if is_file and words[-1:] == ["--config"] else word)
            continue
        key, assigned, value = word.partition("=")
        key = key if key in names else f"--{key[2:].replace('-', '_')}"
        key = names.get(key, key)
        if key == "--data" and "--data.path" in names and not (value or following).startswith("{"):
            key = "--data.path"
        value = _config_named(value) if is_file and key == "--config" and assigned else value
        words.append(f"{key}{assigned}{value}")
    return words


def _name(action: Action) -> str:
    return next(option for option in action.option_strings if option.startswith("--"))


def _config_named(text: str) -> str:
    path = find_config(Path(text))
    if path == Path(text):
        return text
    log.info("%s is no file here: taking %s", text, path)
    return str(path)


def _drop_removed(namespace: Namespace, *, where: str, is_trained: bool) -> None:
    """Remove the keys of REMOVED; UserError (a warning if `is_trained`) if one is not at its old default."""
    for key, default in REMOVED.items():
        value = namespace.pop(key, default)
        if value == default:
            continue
        if not is_trained:
            raise UserError(f"{key} {value}: this version of megadna has no such option any more; remove it{where}")
        log.warning("%s %s: trained with an option that this version of megadna no longer has%s", key, value, where)


def _refuse_huge(namespace: Namespace) -> None:
    """UserError for a whole number that no array index can be."""
    for key, value in namespace.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > MAX_INTEGER:
                raise UserError(f"{key} must not be beyond {MAX_INTEGER}, got {number:.6g}")


def _sections(parser: ArgumentParser) -> set[str]:
    """Dotted names of the keys that contain keys."""
    names = [str(action.dest) for action in parser._actions]
    return {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}


def _options(arguments: list[str]) -> Iterable[tuple[str, str]]:
    """Each --key on the command line, and the value or word after it."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word.startswith("--"):
            key, assigned, value = word.partition("=")
            yield key, value if assigned else following


def _refuse_repeats(parser: ArgumentParser, arguments: list[str]) -> list[Path]:
    """UserError if a key is given twice, as the last would silently win; returns the config files.

    Only the YAML files may be several: an experiment, then files of the keys to change (configs/layouts/).
    """
    overlays = any(isinstance(action, ActionConfigFile) for action in parser._actions)
    seen: dict[str, str] = {}
    files: list[Path] = []
    for key, value in _options(arguments):
        if key == "--config":
            files.append(Path(value))
        if key in seen and not (key == "--config" and overlays):
            raise UserError(
                f"{parser.prog}: {key} is given twice ({seen[key]}, then {value}); give it once, several values in "
                "one list as '[a, b]'"
            )
        seen[key] = value
    return files


def read_yaml(path: Path) -> Any:
    """Content of a user's YAML file, in bounded time and memory; UserError with the line if it is not YAML or too
    large."""
    text = read_text(path, limit=MAX_YAML_BYTES)
    try:
        _compose(text, str(path))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def _check_yaml(path: Path, sections: set[str]) -> None:
    """UserError if a YAML file expands without end, has a key twice in one section, or a value in place of a section
    (the parser would load it as a file); a missing file and other faults are left to the parser."""
    if not path.exists():
        return
    text = read_text(path, limit=MAX_YAML_BYTES)
    try:
        root = _compose(text, str(path))
    except yaml.YAMLError:
        return
    nodes: list[tuple[str, Any]] = [("", root)]
    seen: set[tuple[str, int]] = set()
    while nodes:
        name, node = nodes.pop()
        if name in sections and isinstance(node, yaml.ScalarNode) and node.value not in ("", "null", "~"):
            line = node.start_mark.line + 1
            raise UserError(f"{path}: line {line}: {name} is a section of keys, not {node.value[:80]!r}")
        if (name, id(node)) in seen:  # an alias
            continue
        seen.add((name, id(node)))
        if isinstance(node, yaml.SequenceNode):
            nodes += [(f"{name}[]", item) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise UserError(f"{path}: line {line}: a list or section where a key belongs")
                if key.value in lines:
                    raise UserError(f"{path}: line {line}: {key.value} is in line {lines[key.value]} already")
                if key.value == "config" and not name:
                    raise UserError(f"{path}: line {line}: a file cannot name another; give each with its own --config")
                lines[key.value] = line
                inside = "" if key.tag == _MERGE else key.value
                nodes.append((".".join(filter(None, (name, inside))), value))


_MERGE = "tag:yaml.org,2002:merge"
_YAML_SIGNS = re.compile(r"[\[{&*\n]")
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")


def _compose(text: str, where: str) -> Any:
    """The nodes of a YAML text (None: it is empty); UserError, beginning with `where`, if it nests too deeply, or if
    aliases (`*name`) make it endless or larger than MAX_YAML_VALUES. YAMLError if it is not YAML."""
    depth: int = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # unlike compose, does not recurse
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            line = "" if event.start_mark is None else f" line {event.start_mark.line + 1}:"
            raise UserError(f"{where}:{line} nested more than {MAX_YAML_DEPTH} levels deep; simplify it")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _count_values(root, where, {})
    return root


def _count_values(node: Any, where: str, counts: dict[int, int]) -> int:
    """Values of a node, aliases counted at every use; UserError if they are endless or too many."""
    known = counts.get(id(node))
    if known is not None:
        line = node.start_mark.line + 1
        if not known:
            raise UserError(f"{where}: line {line}: an alias inside the value it names is endless; write it out")
        return known
    counts[id(node)] = 0
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if kind not in _KINDS:
        raise UserError(f"{where}: line {node.start_mark.line + 1}: a value with the tag {kind[:80]}; remove the tag")
    if kind in ("int", "float") and len(node.value) > MAX_YAML_DIGITS:
        raise UserError(f"{where}: line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")
    parts: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    total = 1 + sum(_count_values(part, where, counts) for part in parts)
    if total > MAX_YAML_VALUES:
        line = node.start_mark.line + 1
        raise UserError(f"{where}: line {line}: more than {MAX_YAML_VALUES:,} values with its aliases; write them out")
    counts[id(node)] = total
    return total


def _in_config(arguments: list[str]) -> str:
    """Hint at the config files, if any were given."""
    files = ", ".join(name for key, name in _options(arguments) if key == "--config")
    return f" (look in {files} and at the options)" if files else ""


def add_options(parser: ArgumentParser, options: Any) -> None:
    """The dataclass' fields as options; lists take several words (`--input a b`), booleans none (`--overwrite`)."""
    types = get_type_hints(options)
    documented = [entry for kind in options.__mro__[:-1] for entry in parse_from_object(kind).params]
    help_texts = {entry.arg_name: entry.description for entry in documented}
    special = {name for name, kind in types.items() if get_origin(kind) is list or kind is bool}
    parser.add_class_arguments(options, skip=special)
    for entry in fields(options):
        flag, text = f"--{entry.name}", help_texts.get(entry.name)
        if types[entry.name] is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif entry.name in special:
            parser.add_argument(flag, type=get_args(types[entry.name])[0], nargs="+", default=[], help=text)


def options_from(namespace: Namespace, options: type[Options]) -> Options:
    """The dataclass among the parsed arguments."""
    return options(**{entry.name: namespace[entry.name] for entry in fields(options)})  # type: ignore[arg-type]


def parsed_options(
    command: str, description: str, options: type[Options], arguments: list[str], *, config: str = ""
) -> Options:
    """The dataclass of a command's arguments; config: the help of --config, a YAML file of them."""
    parser = new_parser(command, description)
    if config:
        parser.add_argument("--config", action="config", help=config)
    add_options(parser, options)
    return options_from(parse(parser, arguments), options)


def config_parser(command: str, description: str) -> ArgumentParser:
    """Parser whose options are the keys of Config, read from --config YAML and overridden by --section.key."""
    parser = new_parser(command, description)
    parser.usage = "%(prog)s --config YAML [--section.key value ...] [options]"  # all keys would take 110 lines
    parser.add_argument("--config", action="config", help="YAML file of one experiment; of several, the later win")
    parser.add_class_arguments(Config)
    for action in parser._actions:
        if action.dest in Config.__dataclass_fields__ and action.metavar == "CONFIG":
            action.help = SUPPRESS  # a section as a file: `parse` refuses it
    for key, default in REMOVED.items():
        parser.add_argument(f"--{key}", type=object, default=default, help=SUPPRESS)
    return parser


def config_from(namespace: Namespace) -> Config:
    """The Config among the parsed arguments of a `config_parser`."""
    return Config(**{name: namespace[name] for name in Config.__dataclass_fields__})


def load_config(path: Path, *, is_trained: bool = False) -> Config:
    """Config of a YAML file (`is_trained`: of a checkpoint) or a packaged one; UserError that names the wrong key."""
    return config_from(parse(config_parser("train", ""), ["--config", str(path)], is_trained=is_trained))


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every key written out; `load_config` gives the same Config back."""
    parser = config_parser("train", "")
    namespace = parser.parse_object(_plain(config))
    for key in REMOVED:
        namespace.pop(key)
    return parser.dump(namespace, skip_unset=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
