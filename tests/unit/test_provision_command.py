# SPDX-License-Identifier: Apache-2.0
"""``penumbra provision --plan``: what is asked of the target, and how its answer is told."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from controlplane import model
from controlplane.cli import app, provision
from controlplane.cli.instance import Instance
from controlplane.specifications import Kept, key
from tests.unit.test_commands import CONFIG

SAME = {"field": "Config.User", "verdict": "same", "original": '"web"', "clone": '"web"', "reason": ""}
MOUNT = {"field": "Mounts./d", "verdict": "refused", "original": "x", "clone": "", "reason": "two writers"}


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[model.Order]:
    path = tmp_path / "penumbra.yml"
    path.write_text(CONFIG)
    made = Instance("of-test-plans", path, tmp_path / "state")
    store = made.store()
    store.put(key("web-2"), json.dumps(asdict(Kept("netns", "spare", 1_700_000_000.0, "a2VwdA=="))))
    store.close()
    asked: list[model.Order] = []

    def planned(at: Instance, configured: model.Config, order: model.Order) -> model.Plan:
        asked.append(order)
        if order.parent.name == "web-1":
            return model.Plan([SAME], "live")
        return model.Plan([SAME, MOUNT], "kept")

    monkeypatch.setattr(provision, "find", lambda _: made)
    monkeypatch.setattr(provision, "_planned", planned)
    return asked


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["provision", *arguments])


def test_a_plan_is_told_field_by_field(orders: list[model.Order]) -> None:
    done = told("--plan", "web-1")
    assert done.exit_code == 0, done.output
    assert "web-1-s1, a shadow of web-1 on spare, is made from the original as it runs" in done.output
    assert "Config.User" in done.output
    assert (orders[0].host.name, orders[0].specification) == ("spare", "")


def test_what_would_be_refused_ends_with_1_and_comes_first(orders: list[model.Order]) -> None:
    done = told("--plan", "web-2", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["refused"], found["made_from"], found["kept_unix_s"]) == (True, "kept", 1_700_000_000.0)
    assert [row["field"] for row in found["fields"]] == ["Mounts./d", "Config.User"]
    assert orders[0].specification == "a2VwdA==", "what is kept is given to the target"
    done = told("--plan", "web-2")
    assert done.exit_code == 1
    assert "it would be refused: two writers" in done.output
    assert "a2VwdA==" not in done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["web-1"], "only --plan is there"),
        (["--plan", "web-9"], "endpoint 'web-9' is not known; there are: web-1, web-2"),
        (["--plan", "web-1", "--host", "x"], "host 'x' is not known; there are: spare"),
    ],
)
def test_wrong_usage_is_named(orders: list[model.Order], arguments: list[str], why: str) -> None:
    done = told(*arguments)
    assert done.exit_code == 2
    assert why in done.output
    assert orders == []
