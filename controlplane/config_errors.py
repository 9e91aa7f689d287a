# SPDX-License-Identifier: Apache-2.0
"""What pydantic found, as lines a person can act on: path, value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

VALUE_MOST = 60

_WORDINGS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "greater_than": "more than {gt:g}{unit}",
    "greater_than_equal": "{ge:g}{unit} or more",
    "int_type": "a whole number",
    "ip_any_address": "an address, e.g. 10.0.1.10 or 2001:db8::10,",
    "ip_any_network": "a network without host bits, e.g. 10.0.1.0/24 or 2001:db8::/64,",
    "less_than": "less than {lt:g}{unit}",
    "less_than_equal": "at most {le:g}{unit}",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "{min_length} character or more",
    "string_type": "a text, in quotes where YAML takes it for a number or for true or false,",
    "too_short": "{min_length} or more in it",
    "tuple_type": "a list",
}
"""Kinds of pydantic's errors, as what "is allowed"."""


def lines(error: ValidationError, root: type[BaseModel]) -> Iterable[str]:
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["type"] == "too_short" and problem["input"]:
            continue  # what is in it is refused already, a line each
        path = [part for part in problem["loc"] if part != "[key]"]
        yield f"{'.'.join(map(_part, path))}: {_said(problem, path, root)}"


def _part(part: int | str) -> str:
    """A key as the file has it, on one line."""
    text = str(part)
    return text if text.isprintable() else repr(text)


def _said(problem: Any, path: list[int | str], root: type[BaseModel]) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _keys_at(root, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{_shown(problem['input'])}: unknown key{hint}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "is missing and must be given"
    return f"{_shown(problem['input'])}: {_allowed(problem)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_MOST else text[: VALUE_MOST - 3] + "..."


def _allowed(problem: Any) -> str:
    """Our own messages stay as they are; pydantic's that are not in the table too, less their preamble."""
    if wording := _WORDINGS.get(problem["type"]):
        text = isinstance(problem["input"], str)  # numbers that were written as text had a unit: durations
        return f"{wording.format(**problem.get('ctx', {}), unit=' s' if text else '')} is allowed"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should be "):
        return f"{message.removeprefix('Input should be ')} is allowed"
    return message


def _keys_at(root: type[BaseModel], path: list[int | str]) -> list[str]:
    """The keys that the section at ``path`` knows."""
    here: Any = root
    for part in path:
        here = here.model_fields[part].annotation if _is_section(here) else get_args(here)[-1]
        here = _plain(here)
    return list(here.model_fields) if _is_section(here) else []


def _plain(annotation: Any) -> Any:
    """Without Annotated and Optional around it."""
    while True:
        if hasattr(annotation, "__metadata__"):
            annotation = annotation.__origin__
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
