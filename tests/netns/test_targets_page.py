# SPDX-License-Identifier: Apache-2.0
"""The example of playbooks/TARGETS.md is a target: its very files are run."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from controlplane import model
from controlplane.adapters import targets
from controlplane.adapters.ansible import AnsibleProvisioner, shipped_playbooks
from controlplane.adapters.clock import MachineClock
from tests.netns.steered import eventually
from tests.world import config

FILE = re.compile(r"^`(roles/\S+)`\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def written(folder: Path) -> Path:
    shutil.copytree(shipped_playbooks(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = FILE.findall((folder / "TARGETS.md").read_text())
    assert len(files) == 5
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_example_makes_lists_and_removes_shadows_and_its_variables_are_checked(tmp_path: Path) -> None:
    books = written(tmp_path / "books")
    variables = {"labels_dir": str(tmp_path / "labels"), "service_port": 8080}
    assert list(targets.problems(config(target="spare", variables=variables), (books,))) == []
    (problem,) = targets.problems(config(target="spare", variables={"service_port": "a"}), (books,))
    assert "services.web.shadows.variables.service_port: 'a' is not a whole number" in problem

    host = model.Host(
        "spare-1", variables={"ansible_connection": "local", "address": "10.0.2.9", **variables}
    )
    parent = model.Endpoint("web-1", "web", IPv4Address("10.0.0.1"), 80)
    order = model.Order(
        "web-1-s1",
        "t-page",
        "web",
        parent,
        model.Protocol.TCP,
        model.Probe(),
        host,
        "spare",
        60.0,
        variables,
    )
    provisioner = AnsibleProvisioner("t-page", {"spare-1": host}, MachineClock(), books, tmp_path / "run")
    ended: list[model.RunResult] = []

    def result() -> model.RunResult:
        eventually(lambda: ended.extend(provisioner.results()) or ended)
        return ended.pop()

    try:
        provisioner.provision(order)
        made = result()
        assert (made.reason, str(made.address), made.port) == ("", "10.0.2.9", 8080)
        (found,) = provisioner.existing([("spare-1", "spare")]).found
        assert (found.shadow, found.parent, str(found.address)) == ("web-1-s1", "web-1", "10.0.2.9")
        assert found.id == made.id != ""
        assert found.created
        provisioner.provision(replace(order, timeout_s=59.0))
        assert result().reason == ""
        (again,) = provisioner.existing([("spare-1", "spare")]).found
        assert again == found, "the same order finds what it made"
        provisioner.deprovision(order)
        assert result().reason == ""
        assert provisioner.existing([("spare-1", "spare")]).found == []
        assert "no tasks/plan.yml" in provisioner.plan(order).reason
    finally:
        provisioner.close()
