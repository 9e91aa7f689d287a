# SPDX-License-Identifier: Apache-2.0
"""What runs of playbooks make of texts with braces, and whose fault a failure is: Ansible runs for real."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters.ansible import AnsibleProvisioner, shipped_playbooks
from controlplane.adapters.ansible_run import PlaybookRun
from controlplane.adapters.clock import MachineClock

HOST = model.Host(
    "here",
    variables={
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "site": "{{ 6 * 7 }}",
    },
)
TARGET = {
    "meta/argument_specs.yml": """
argument_specs:
  provision: {options: {order: {type: dict, required: true}, size: {type: int}}}
""",
    "tasks/provision.yml": """
- name: Tell what a variable of a host became
  ansible.builtin.copy: {dest: "{{ run_dir }}/site", content: "{{ order.parent_host.site }}"}
- name: Make it
  ansible.builtin.set_fact: {made: {shadow: {address: 10.0.0.9, port: 8080}}}
""",
    "tasks/deprovision.yml": "[]",
    "tasks/existing.yml": """
- name: List none
  ansible.builtin.set_fact: {listed: {shadows: []}}
""",
}


@dataclass
class Site:
    """Playbooks as shipped, with a target that makes nothing."""

    folder: Path
    provisioner: AnsibleProvisioner
    order: model.Order

    def run(self, *, remove: bool = False, **changes: object) -> model.RunResult:
        order = replace(self.order, **changes)  # type: ignore[arg-type]
        (self.provisioner.deprovision if remove else self.provisioner.provision)(order)
        deadline = time.monotonic() + 30
        while not (ended := self.provisioner.results()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return ended[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    books = folder / "books"
    shutil.copytree(shipped_playbooks(), books)
    for name, text in TARGET.items():
        path = books / "roles/nothing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    provisioner = AnsibleProvisioner("unitsync", {"here": HOST}, MachineClock(), books, folder)
    parent = model.Endpoint("db-1", "db", ip_address("10.0.0.1"), 5432, host="here")
    order = model.Order(
        "db-1-s1", "unitsync", "db", parent, model.Protocol.TCP, model.Probe(), HOST, "nothing", 30.0
    )
    yield Site(folder, provisioner, order)
    provisioner.close()


def by_commands(**variables: object) -> model.Sync:
    return model.Sync(model.SyncDriver.COMMAND, max_lag_s=5.0, variables={"lag": "echo 0", **variables})


def test_commands_are_run_as_they_stand_and_their_failure_is_not_the_hosts(
    site: Site, tmp_path: Path
) -> None:
    text = "{{.Names}} {{ 7*7 }} {% if {#"
    complains = "echo 'boom {{ 7*7 }}' >&2; exit 3"
    started = by_commands(
        start=f"echo '{text}' >{tmp_path}/began; {complains}",
        stop=["sh", "-c", 'echo "$0" >' + f"{tmp_path}/ended; {complains}", text],
    )
    failed = site.run(sync=started)
    assert "/bin/sh ended with 3: boom {{ 7*7 }}" in failed.reason
    assert failed.refused
    assert (tmp_path / "began").read_text() == text + "\n"
    assert (site.folder / "site").read_text() == "42", "variables of hosts are templates, as in the inventory"

    failed = site.run(sync=started, remove=True)
    assert "sh ended with 3: boom {{ 7*7 }}" in failed.reason
    assert failed.refused
    assert (tmp_path / "ended").read_text() == text + "\n"


def test_a_role_that_does_not_take_its_variables_is_not_the_hosts_fault(site: Site) -> None:
    failed = site.run(variables={"size": "much"})
    assert "Validating arguments against arg spec" in failed.reason
    assert failed.refused


def failure(**said: object) -> dict[str, object]:
    data: dict[str, object] = {
        "host": "here",
        "task": "t",
        "task_action": "fail",
        "res": {"msg": "m", **said},
    }
    return {"event": "runner_on_failed", "event_data": data}


@pytest.mark.parametrize(
    ("failed", "refused"),
    [
        ([failure(refused=True)], True),
        ([failure()], False),
        ([failure(refused=True), failure()], False),
        ([failure(), failure(refused=True)], True),
    ],
    ids=["refused", "a host's", "refused, and then the host failed, too", "the other way round"],
)
def test_the_last_failure_tells_whose_fault_it_is(failed: list[dict[str, object]], *, refused: bool) -> None:
    run = PlaybookRun(Path("none.yml"), {}, {})
    for event in failed:
        run._event(event)
    assert run._outcome.refused is refused
