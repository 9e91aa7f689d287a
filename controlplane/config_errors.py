# SPDX-License-Identifier: Apache-2.0
"""What pydantic found, as lines a person can act on: path, value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

VALUE_MOST = 60


def lines(error: ValidationError, root: type[BaseModel]) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        path = [part for part in problem["loc"] if part != "[key]"]
        yield f"{'.'.join(map(str, path))}: {_said(problem, path, root)}"


def _said(problem: Any, path: list[int | str], root: type[BaseModel]) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _keys_at(root, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{_shown(problem['input'])}: unknown key{hint}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "is missing and must be given"
    return f"{_shown(problem['input'])}: {_allowed(problem['msg'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_MOST else text[: VALUE_MOST - 3] + "..."


def _allowed(message: str) -> str:
    """Pydantic's "Input should be X" as "X is allowed"; our own messages as they are."""
    message = message.removeprefix("Value error, ")
    if message.startswith("Input should be "):
        what = message.removeprefix("Input should be ").replace("a valid tuple", "a list")
        return f"{what.replace('a valid dictionary', 'a mapping').removeprefix('a valid ')} is allowed"
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
