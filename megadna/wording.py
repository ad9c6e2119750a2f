"""What a parser says to a user: types and mistakes in words, without the names of Python's types."""

import difflib
import re
from argparse import OPTIONAL, SUPPRESS, Action
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "null"}
MEANT = {
    "bpe": "sentencepiece",
    "char": "nucleotide",
    "base": "nucleotide",
    "cosine_annealing": "cosine",
    "wsd": "trapezoid",
    "gpu": "cuda",
}
"""Other systems' words for a choice of ours."""
OBVIOUS = (str, Path, bool)
"""Types that --help need not name: an option's own words do."""


def type_in_words(kind: Any) -> str:
    """`a whole number or auto` for `int | Literal["auto"]`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(map(type_in_words, inner))
    if origin is list:
        return f"a list [{WORDS.get(inner[0], 'section').removeprefix('a ')}, ...]"
    if origin is tuple:
        return f"a list of {len(inner)} values, as [{', '.join(['...'] * len(inner))}]"
    if origin is dict:
        return f"a section {{name: {WORDS.get(inner[1], 'value')}}}"
    return WORDS.get(kind, "a section of keys")


class Help(DefaultHelpFormatter):
    """After each option what it takes, where that is not obvious, and its default, where it has one."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if isinstance(action, ActionConfigFile) or action.dest == "help" or "%(" in text:
            return super()._get_help_string(action)
        kind = getattr(action, "_typehint", action.type)
        named = set(get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,))
        notes = ["required"] if action.required and action.option_strings else []
        if kind is not None and get_origin(kind) is not Literal and not named <= {*OBVIOUS, NoneType}:
            notes.append(type_in_words(kind).removesuffix(" or null"))
        is_unset = action.default in (None, "", SUPPRESS) or action.default in ([], {}) or action.default is False
        if not is_unset and (action.option_strings or action.nargs == OPTIONAL):
            notes.append("default: %(default)s")
        return f"{text} ({', '.join(notes)})" if notes else text

    def _format_action_invocation(self, action: Action) -> str:
        """Without `--key+`, which appends to a list."""
        return re.sub(r", --[\w.]+\+ \w+", "", super()._format_action_invocation(action))


def explain(parser: ArgumentParser, message: str) -> str:
    """jsonargparse's message in one line of words; for an unknown key or choice, the nearest known one."""
    message = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: (?:--)?([\w.]+)", message) or re.search(
        r"[Oo]ption '([\w.]+)'", message
    )
    if unknown is not None:
        group = re.search(r"Group '([\w.]+)'", message)
        text = _unknown_key(parser, f"{group[1]}.{unknown[1]}" if group else unknown[1])
    elif missing := re.search(r"arguments are required: (.*)$", message):
        names = [_flag(parser, name) for name in missing[1].split(", ")]
        text = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing; see {parser.prog} --help"
    elif choice := re.search(r"argument ([-\w.]+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
        choices = choice[3].replace("'", "")
        text = f"{choice[1]} must be one of {choices}, got {choice[2]}{_meant(choice[2], choices.split(', '))}"
    elif wrong := re.search(r'Parser key "([\w.]+)".*(?:Got value|Given value): (.*)$', message):
        kinds = (
            action._typehint for action in parser._actions if action.dest == wrong[1] and hasattr(action, "_typehint")
        )
        text = _wrong_value(_flag(parser, wrong[1]), next(kinds, None), wrong[2]) or message
    else:
        text = message
    return f"{parser.prog}: {text}"


def _unknown_key(parser: ArgumentParser, key: str) -> str:
    shown = (action for action in parser._actions if action.help is not SUPPRESS)
    known = [option.lstrip("-") for action in shown for option in action.option_strings]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"see {parser.prog} --help")


def _flag(parser: ArgumentParser, name: str) -> str:
    """An option with its dashes; as they are, the key of a config, and in capitals, an argument without a name."""
    is_option = any(action.dest == name and action.option_strings for action in parser._actions)
    return name if "." in name else f"--{name}" if is_option else name.upper()


def _wrong_value(name: str, kind: Any, value: str) -> str:
    """Empty where the option's type is not known."""
    return f"{name} must be {type_in_words(kind)}, got {value}{_meant(value, _choices(kind))}" if kind else ""


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _meant(value: str, choices: list[str]) -> str:
    near = [MEANT[value.lower()]] if value.lower() in MEANT else difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {near[0]}?" if near and near[0] in choices else ""
