# SPDX-License-Identifier: Apache-2.0
"""Targets: roles of a folder of playbooks, and what their argument specifications say of variables.

A role's ``meta/argument_specs.yml`` is Ansible's own format (docs.ansible.com, "Role argument validation").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from controlplane import model

MADE_OF = ("provision", "deprovision", "existing")
"""Tasks that every target has; ``inspect`` and ``plan`` it may have."""
_NOT_THE_USERS = frozenset({"order", "run_dir"})
_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "str": ("a text", lambda value: isinstance(value, str | int | float) and not isinstance(value, bool)),
    "raw": ("anything", lambda value: True),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list | tuple)),
    "dict": ("a mapping", lambda value: isinstance(value, Mapping)),
    "path": ("a path", lambda value: isinstance(value, str)),
}


def playbook(folders: Sequence[Path], name: str, target: str) -> Path | None:
    """The first folder's where the target has tasks for it."""
    for folder in folders:
        if (folder / name).is_file() and (folder / "roles" / target / "tasks" / name).is_file():
            return folder / name
    return None


def known(folders: Sequence[Path]) -> dict[str, Path]:
    """Target -> its role's folder. Of two folders that have it the first one's counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for role in sorted((folder / "roles").glob("*")):
            if all((role / "tasks" / f"{name}.yml").is_file() for name in MADE_OF):
                found.setdefault(role.name, role)
    return found


def problems(configured: model.Config, folders: Sequence[Path]) -> Iterator[str]:
    """What the configuration asks of targets and they don't have or take, a line each, with its path."""
    targets = known(folders)
    for service in configured.services.values():
        where, settings = f"services.{service.name}.shadows", service.shadows
        if settings.target not in targets:
            yield f"{where}.target: {settings.target!r} is no target; there are: {', '.join(sorted(targets))}"
            continue
        try:
            options = _options(targets[settings.target])
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            yield f"{where}.target: what {settings.target} takes can't be read: {why}"
            continue
        if options is not None:
            yield from _in_mapping(f"{where}.variables", settings.variables, options)
        if service.sync is not None:
            yield from _of_sync(f"services.{service.name}.sync", service.sync, folders)


def _of_sync(where: str, sync: model.Sync, folders: Sequence[Path]) -> Iterator[str]:
    """A driver is a role, too: sync_NAME, with tasks to start and to stop a copy."""
    role = next(
        (one for folder in folders if (one := folder / "roles" / f"sync_{sync.driver.value}").is_dir()), None
    )
    options = None if role is None else _options(role)
    if options is not None:
        yield from _in_mapping(f"{where}.variables", sync.variables, options, templates=False)


def _options(role: Path) -> dict[str, Any] | None:
    """Variable -> its specification, of all of a role's entry points. None: it has none, takes anything."""
    path = role / "meta/argument_specs.yml"
    if not path.is_file():
        return None
    specs = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("argument_specs") or {}
    return {
        name: option
        for spec in specs.values()
        for name, option in (spec.get("options") or {}).items()
        if name not in _NOT_THE_USERS
    }


def _in_mapping(
    where: str, given: Mapping[str, object], options: Mapping[str, Any], *, templates: bool = True
) -> Iterator[str]:
    """:param templates: texts may be Ansible's templates."""
    for key, value in given.items():
        if key in options:
            yield from _in_value(f"{where}.{key}", value, options[key], templates=templates)
        elif not str(key).startswith("ansible_"):  # how its hosts are reached is every target's
            yield f"{where}.{key}: is not known; allowed: {', '.join(sorted(options))}"


def _in_value(where: str, value: object, option: Mapping[str, Any], *, templates: bool) -> Iterator[str]:
    if templates and isinstance(value, str) and "{{" in value:
        return  # what Ansible makes of it is known only there
    kind = str(option.get("type", "str"))
    told, holds = _KINDS.get(kind, _KINDS["raw"])
    if not holds(value):
        yield f"{where}: {value!r} is not {told}; {told} is allowed"
        return
    choices = option.get("choices")
    if choices and value not in choices:
        yield f"{where}: {value!r} is none of {', '.join(map(str, choices))}"
    if isinstance(value, list | tuple) and "elements" in option:
        element = {"type": option["elements"], "options": option.get("options")}
        for at, one in enumerate(value):
            yield from _in_value(f"{where}.{at}", one, element, templates=templates)
    if isinstance(value, Mapping) and option.get("options"):
        inner = option["options"]
        yield from _in_mapping(where, value, inner, templates=templates)
        missing = (key for key, one in inner.items() if one.get("required") and key not in value)
        yield from (f"{where}.{key}: is missing" for key in missing)
