# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks of targets, against the roles and their argument specifications."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controlplane import model
from controlplane.adapters import targets
from controlplane.adapters.ansible import shipped_playbooks
from tests.world import config

SHIPPED = shipped_playbooks()
WHERE = "services.web.shadows"


def of(target: str, **variables: object) -> model.Config:
    its = config(target=target, variables=variables)
    return replace(its, services={"web": its.services["web"]})


def said(configured: model.Config, *folders: Path) -> list[str]:
    return list(targets.problems(configured, (*folders, SHIPPED)))


def test_the_shipped_targets_are_known_and_what_they_take_is_what_they_have_defaults_for() -> None:
    known = targets.known((SHIPPED,))
    assert {"docker", "netns"} <= known.keys()
    assert not [name for name in known if name.startswith("sync_")], "a driver is no target"
    for role in known.values():
        specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
        assert {path.stem for path in (role / "tasks").glob("*.yml")} == specs.keys()
        options = {name for spec in specs.values() for name in spec["options"]}
        defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
        assert defaults.keys() <= options, "each default can be set"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, None),
        ({"port_range": [20000, 20999], "shared_mounts": ["/data"], "container": "web"}, None),
        ({"rewrite": [{"find": "a", "replace": "{name}"}], "environment_set": {"A": 1}}, None),
        ({"port_range": "{{ ports }}"}, None),
        ({"ansible_become": True}, None),
        ({"shared_mount": []}, f"{WHERE}.variables.shared_mount: is not known; allowed: address, "),
        ({"port_range": "20000"}, f"{WHERE}.variables.port_range: '20000' is not a list; a list is allowed"),
        ({"port_range": [1, "x"]}, f"{WHERE}.variables.port_range.1: 'x' is not a whole number; "),
        ({"stop_timeout_s": True}, f"{WHERE}.variables.stop_timeout_s: True is not a whole number; "),
        ({"rewrite": [{"find": "a"}]}, f"{WHERE}.variables.rewrite.0.replace: is missing"),
        (
            {"rewrite": [{"find": "a", "replace": "b", "x": 1}]},
            f"{WHERE}.variables.rewrite.0.x: is not known",
        ),
        ({"environment_set": ["A"]}, f"{WHERE}.variables.environment_set: ['A'] is not a mapping; "),
        ({"order": {}}, f"{WHERE}.variables.order: is not known; "),
    ],
)
def test_variables_are_held_against_the_specification(
    variables: dict[str, object], problem: str | None
) -> None:
    found = said(of("docker", **variables))
    assert bool(found) is (problem is not None), found
    assert problem is None or found[0].startswith(problem), found


def test_an_unknown_target_is_refused_with_what_there_is() -> None:
    (problem,) = said(of("dokcer"))
    assert problem.startswith(f"{WHERE}.target: 'dokcer' is no target; there are: docker, ")


def own(folder: Path, specs: str | None = None) -> Path:
    tasks = folder / "roles/vm/tasks"
    tasks.mkdir(parents=True)
    for name in targets.MADE_OF:
        (tasks / f"{name}.yml").write_text("[]\n")
    if specs is not None:
        (folder / "roles/vm/meta").mkdir()
        (folder / "roles/vm/meta/argument_specs.yml").write_text(specs)
    return folder


def test_a_target_of_the_users_own_is_one_and_takes_anything_if_it_does_not_say_what(tmp_path: Path) -> None:
    assert said(of("vm", size=3), own(tmp_path)) == []


def test_a_role_that_lacks_a_task_is_no_target(tmp_path: Path) -> None:
    (own(tmp_path) / "roles/vm/tasks/existing.yml").unlink()
    (problem,) = said(of("vm"), tmp_path)
    assert "'vm' is no target" in problem


@pytest.mark.parametrize("specs", ["argument_specs: [", "argument_specs: 3", "[1]"])
def test_a_specification_that_can_not_be_read_is_told(tmp_path: Path, specs: str) -> None:
    (problem,) = said(of("vm", size=3), own(tmp_path, specs))
    assert "what vm takes can't be read" in problem


@pytest.mark.parametrize(
    ("driver", "variables", "problem"),
    [
        ("postgres", {"database": "shop", "user": "penumbra", "tables": ["public.items"]}, None),
        ("command", {"start": ["begin"], "stop": "end", "lag": "tell"}, None),
        ("command", {"start": "docker ps --format '{{.Names}}'", "lag": "tell"}, None),
        ("postgres", {"tables": "{{ all }}"}, "tables: '{{ all }}' is not a list; "),
        ("postgres", {"tabels": []}, "tabels: is not known; allowed: database, password_file, sslmode, "),
        ("postgres", {"sslmode": "always"}, "sslmode: 'always' is none of disable, allow, "),
        ("redis", {"database": 1}, "database: is not known; allowed: password_file, user"),
    ],
)
def test_a_drivers_variables_are_held_against_its_specification(
    driver: str, variables: dict[str, object], problem: str | None
) -> None:
    its = of("netns")
    sync = model.Sync(model.SyncDriver(driver), max_lag_s=5.0, variables=variables)
    told = said(replace(its, services={"web": replace(its.services["web"], sync=sync)}))
    if problem is None:
        assert told == []
    else:
        (line,) = told
        assert line.startswith(f"services.web.sync.variables.{problem}")
