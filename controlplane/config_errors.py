# SPDX-License-Identifier: Apache-2.0
"""What pydantic found, as lines a person can act on: path, value, what is allowed."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

VALUE_MOST = 60
_CLOSE = 0.8
"""How alike a key of another section must be."""

_WORDINGS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "greater_than_equal": "{ge:.12g} or more",
    "int_type": "a whole number",
    "invalid_key": "a text as key",
    "ip_any_address": "an address, e.g. 10.0.1.10 or 2001:db8::10,",
    "ip_any_network": "a network without host bits, e.g. 10.0.1.0/24 or 2001:db8::/64,",
    "less_than_equal": "at most {le:.12g}",
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
        allowed = list(_section_at(root, path[:-1]).model_fields)
        hint = _hint(str(path[-1]), allowed, root)
        return f"{_shown(problem['input'])}: unknown key{hint}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"is missing and must be given{_choices(_section_at(root, path[:-1]), str(path[-1]))}"
    return f"{_shown(problem['input'])}: {_allowed(problem)}"


def _hint(key: str, allowed: list[str], root: type[BaseModel]) -> str:
    """What may have been meant: a key of this section, or one that belongs into another."""
    elsewhere = {path.rpartition(".")[2]: path for path in _paths(root)}
    close = difflib.get_close_matches(key, {*allowed, *elsewhere}, n=1, cutoff=_CLOSE)
    if not close:
        close = difflib.get_close_matches(key, allowed, n=1)
    if not close:
        return ""
    return f" (did you mean {close[0] if close[0] in allowed else elsewhere[close[0]]!r}?)"


def _paths(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Of all keys, the outermost first, as CONFIGURATION.md writes them."""
    inner: list[tuple[Any, str]] = []
    for key, field in section.model_fields.items():
        yield above + key
        kind = _plain(field.annotation)
        named = get_origin(kind) is dict
        inner.append(
            (_plain(get_args(kind)[-1]) if named else kind, f"{above}{key}.{'NAME.' if named else ''}")
        )
    for kind, path in inner:
        if _is_section(kind):
            yield from _paths(kind, path)


def _choices(section: type[BaseModel], key: str) -> str:
    """What a key that is missing may be, if that is one of few words."""
    kind = _plain(section.model_fields[key].annotation)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return ""
    return f"; allowed: {', '.join(one.value for one in kind)}"


def _shown(value: object) -> str:
    """As YAML has it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = text.replace("inf", ".inf").replace("nan", ".nan")
    return text if len(text) <= VALUE_MOST else text[: VALUE_MOST - 3] + "..."


def _allowed(problem: Any) -> str:
    """Our own messages stay as they are; pydantic's that are not in the table too, less their preamble."""
    if wording := _WORDINGS.get(problem["type"]):
        return f"{wording.format(**problem.get('ctx', {}))} is allowed"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should be "):
        return f"{message.removeprefix('Input should be ')} is allowed"
    return message


def _section_at(root: type[BaseModel], path: list[int | str]) -> type[BaseModel]:
    here: Any = root
    for part in path:
        here = here.model_fields[part].annotation if _is_section(here) else get_args(here)[-1]
        here = _plain(here)
    return cast("type[BaseModel]", here)


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
