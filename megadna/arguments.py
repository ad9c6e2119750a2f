"""Dataclasses <-> command line and YAML (jsonargparse), with every mistake as one UserError that names the key."""

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from megadna.config import Config
from megadna.errors import UserError

Options = TypeVar("Options")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def new_parser(command: str, description: str) -> ArgumentParser:
    """Parser of one verb; parse with `parse` below, never with its own parse_args."""
    return ArgumentParser(prog=f"megadna {command}", description=description, exit_on_error=False, allow_abbrev=False)


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Parse and build the dataclasses; UserError with the key and a suggestion where something is wrong."""
    for path in _refuse_repeats(parser, arguments):
        _refuse_double_keys(path)
    try:
        return parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise UserError(_explain(parser, str(error)) + _in_config(arguments)) from error
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        message = "a section holds a list or a value where keys belong" if "mapping" in str(error) else str(error)
        raise UserError(f"{parser.prog}: {message}{_in_config(arguments)}") from error


def _options(arguments: list[str]) -> Iterable[tuple[str, str]]:
    """Each --key on the command line, and the value or word behind it."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if word.startswith("--"):
            key, assigned, value = word.partition("=")
            yield key, value if assigned else following


def _refuse_repeats(parser: ArgumentParser, arguments: list[str]) -> list[Path]:
    """UserError where a key is given twice, of which the last would silently win; returns the config files.

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
                f"{parser.prog}: {key} is given twice ({seen[key]}, then {value}); say it once, several values in "
                "one list as '[a, b]'"
            )
        seen[key] = value
    return files


def _refuse_double_keys(path: Path) -> None:
    """UserError where a YAML file holds a key twice in one section; other faults are left to the parser."""
    try:
        nodes = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(f"{path}: line {line}: {key.value} stands in line {lines[key.value]} already")
                lines[key.value] = line
                nodes.append(value)


def _in_config(arguments: list[str]) -> str:
    """Where to look as well, where config files were given."""
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
    return options(**{name: namespace[name] for name in options.__dataclass_fields__})  # type: ignore[attr-defined]


def config_parser(command: str, description: str) -> ArgumentParser:
    """Parser whose options are the keys of Config, read from --config YAML and overridden by --section.key."""
    parser = new_parser(command, description)
    parser.usage = "%(prog)s --config YAML [--section.key value ...] [options]"  # all keys would take 110 lines
    parser.add_argument("--config", action="config", help="YAML file of one experiment; of several, the later win")
    parser.add_class_arguments(Config)
    return parser


def config_from(namespace: Namespace) -> Config:
    """The Config among the parsed arguments of a `config_parser`."""
    return Config(**{name: namespace[name] for name in Config.__dataclass_fields__})


def load_config(path: Path) -> Config:
    """Config of a YAML file; UserError with the key where it does not fit."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    return config_from(parse(config_parser("train", ""), ["--config", str(path)]))


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every key written out; `load_config` gives the same Config back."""
    parser = config_parser("train", "")
    return parser.dump(parser.parse_object(_plain(config)), skip_unset=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(parser: ArgumentParser, message: str) -> str:
    """jsonargparse's message in one line, with the nearest known key for an unknown one."""
    message = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: (?:--)?([\w.]+)", message) or re.search(
        r"[Oo]ption '([\w.]+)'", message
    )
    if unknown is None:
        return f"{parser.prog}: {message}"
    group = re.search(r"Group '([\w.]+)'", message)
    key = f"{group.group(1)}.{unknown.group(1)}" if group else unknown.group(1)
    known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; see {parser.prog} --help"
    return f"{parser.prog}: unknown key {key}{hint}"
