# SPDX-License-Identifier: Apache-2.0
"""Provisioning by the shipped playbooks, for real: a process is cloned into another network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters import ansible_processes
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.clock import MachineClock
from tests.netns.steered import eventually, playbooks_with

ROOT = Path(__file__).resolve().parents[2]
PARENT = IPv4Address("10.77.1.1")
SHADOW = IPv4Address("10.77.1.2")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Site:
    """Two hosts joined by a veth; ``instance`` is unique, so are all names."""

    instance: str
    first: str
    second: str
    run_dir: Path

    @property
    def hosts(self) -> dict[str, model.Host]:
        return {
            name: model.Host(
                name,
                variables={
                    "ansible_connection": "local",
                    "netns": netns,
                    "data_dir": str(self.run_dir.parent / "data"),
                },
            )
            for name, netns in (("host-a", self.first), ("host-b", self.second))
        }

    def order(self, shadow: str = "web-1-s1", **variables: object) -> model.Order:
        parent = model.Endpoint("web-1", "web", PARENT, 8080, host="host-a")
        host = self.hosts["host-b"]
        return model.Order(
            shadow,
            self.instance,
            "web",
            parent,
            model.Protocol.TCP,
            model.Probe(),
            host,
            "netns",
            60.0,
            variables,
        )

    def provisioner(self, playbooks: Path | None = None) -> AnsibleProvisioner:
        return AnsibleProvisioner(self.instance, self.hosts, MachineClock(), playbooks, self.run_dir)

    def serve(
        self, *extra: str, port: int = 8080, environment: Mapping[bytes, bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """The live original."""
        usual = {"PATH": os.environ["PATH"], "BRACES": "{{ 7*7 }}", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [
                *(
                    "nsenter",
                    f"--net=/run/netns/{self.first}",
                    sys.executable,
                    "-m",
                    "controlplane.lab.server",
                ),
                *("--name", "web-1", "--address", str(PARENT), f"--port={port}", *extra),
            ],
            env={os.fsencode(name): os.fsencode(value) for name, value in usual.items()}
            | dict(environment or {}),
        )
        eventually(lambda: self.get(PARENT, port) is not None)
        return process

    def get(self, address: IPv4Address, port: int) -> str | None:
        """Who answers an HTTP GET that comes from the first host; None: nobody."""
        found = subprocess.run(
            [
                *("nsenter", f"--net=/run/netns/{self.first}", "curl", "-s", "-i", "-m", "1"),
                f"http://{address}:{port}/",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in found.stdout.splitlines() if line.lower().startswith("x-served-by:")]
        return lines[0].split(":")[1].strip() if lines else None

    def processes(self, shadow: str | None = None) -> list[int]:
        """Processes that carry the labels of this instance's shadows."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                except OSError:
                    continue
                if f"PENUMBRA_INSTANCE={self.instance}" in entries and (
                    shadow is None or f"PENUMBRA_SHADOW={shadow}" in entries
                ):
                    found.append(int(folder.name))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    tag = uuid.uuid4().hex[:6]
    made = Site(f"t-{tag}", f"pa-{tag}", f"pb-{tag}", tmp_path / "run")
    try:
        for netns in (made.first, made.second):
            run("ip", "netns", "add", netns)
            run("ip", "-n", netns, "link", "set", "lo", "up")
        run(
            "ip",
            "link",
            "add",
            "v0",
            "netns",
            made.first,
            "type",
            "veth",
            "peer",
            "name",
            "v0",
            "netns",
            made.second,
        )
        for netns, address in ((made.first, PARENT), (made.second, SHADOW)):
            run("ip", "-n", netns, "address", "add", f"{address}/24", "dev", "v0")
            run("ip", "-n", netns, "link", "set", "v0", "up")
        yield made
    finally:
        for pid in made.processes():
            os.kill(pid, signal.SIGKILL)
        for netns in (made.first, made.second):
            subprocess.run(["ip", "netns", "delete", netns], check=False)


@pytest.fixture
def original(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    process = site.serve()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def provisioner(site: Site) -> Iterator[AnsibleProvisioner]:
    made = site.provisioner()
    try:
        yield made
    finally:
        made.close()


def result_of(provisioner: AnsibleProvisioner, within_s: float = 30.0) -> model.RunResult:
    found: list[model.RunResult] = []
    eventually(lambda: found.extend(provisioner.results()) or found, within_s)
    (result,) = found
    return result


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def assert_made_once_and_gone(site: Site, provisioner: AnsibleProvisioner) -> None:
    begun_s = time.monotonic()
    provisioner.provision(site.order())
    made = result_of(provisioner)
    assert made.reason == ""
    assert (made.state, made.address) == (model.RunState.DONE, SHADOW)
    assert made.port is not None
    assert site.get(SHADOW, made.port) == "web-1-s1"
    print(f"netns: decision to 200 {time.monotonic() - begun_s:.2f} s")
    (pid,) = site.processes()
    environment = environment_of(pid)
    assert environment["BRACES"] == "{{ 7*7 }}"
    assert ansible_processes.LABEL not in environment

    provisioner.provision(site.order())
    again = result_of(provisioner)
    assert (again.address, again.port) == (made.address, made.port)
    assert site.processes() == [pid]

    (found,) = provisioner.existing([("host-a", "netns"), ("host-b", "netns")]).found
    assert (found.shadow, found.host, found.parent, found.port) == ("web-1-s1", "host-b", "web-1", made.port)

    for _ in range(2):
        provisioner.deprovision(site.order())
        assert result_of(provisioner).state is model.RunState.DONE
        assert site.processes() == []
    assert site.get(SHADOW, made.port) is None
    assert list((site.run_dir / site.instance / "runs").iterdir()) == []


@pytest.mark.usefixtures("original")
def test_a_shadow_answers_from_its_own_address_once_and_is_gone_after(
    site: Site, provisioner: AnsibleProvisioner
) -> None:
    assert_made_once_and_gone(site, provisioner)


@pytest.mark.usefixtures("original")
def test_negative_control_a_removal_that_removes_nothing_is_noticed(site: Site, tmp_path: Path) -> None:
    books = playbooks_with(tmp_path / "books", "roles/netns/tasks/deprovision.yml", "[]\n")
    provisioner = site.provisioner(books)
    try:
        with pytest.raises(AssertionError):
            assert_made_once_and_gone(site, provisioner)
        assert len(site.processes("web-1-s1")) == 1, "the fault hit: the shadow lives on"
    finally:
        provisioner.close()


@pytest.mark.usefixtures("original")
def test_a_lost_record_is_made_anew_from_the_labels(site: Site, provisioner: AnsibleProvisioner) -> None:
    provisioner.provision(site.order())
    made = result_of(provisioner)
    before = site.processes()
    shutil.rmtree(site.run_dir / site.instance / "shadows")
    provisioner.provision(site.order())
    assert result_of(provisioner).port == made.port
    assert site.processes() == before


def test_a_shadow_is_made_of_what_was_kept_when_the_original_is_dead(
    site: Site, provisioner: AnsibleProvisioner
) -> None:
    """Bytes of its environment that are no UTF-8 included."""
    odd = b"\xff\xfe {{ 7*7 }}"
    original = site.serve(environment={b"ODD": odd})
    order = site.order()
    provisioner.inspect([replace(order, host=site.hosts["host-a"])])
    found: list[model.Inspection] = []
    eventually(lambda: found.extend(provisioner.inspected() or ()) or found)
    ((name, text),) = [(one.endpoint, one.text) for one in found]
    original.kill()
    original.wait()
    provisioner.provision(replace(order, specification=text))
    made = result_of(provisioner)
    assert (name, made.reason) == ("web-1", "")
    assert made.address is not None
    assert made.port is not None
    assert site.get(made.address, made.port) == "web-1-s1"
    (pid,) = site.processes("web-1-s1")
    assert b"ODD=" + odd in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_without_an_original_the_reason_names_the_task_and_the_address(
    site: Site, provisioner: AnsibleProvisioner
) -> None:
    provisioner.provision(site.order())
    result = result_of(provisioner)
    assert result.state is model.RunState.FAILED
    assert result.reason.startswith("task Clone the process: nothing serves 10.77.1.1:8080 (web-1)")
    assert "\n" not in result.reason


@pytest.mark.usefixtures("original")
def test_a_clone_that_dies_at_once_fails_with_its_last_words(
    site: Site, provisioner: AnsibleProvisioner
) -> None:
    command = ["/bin/sh", "-c", "echo no licence for {address}:{port}; exit 3"]
    provisioner.provision(site.order(command=command))
    result = result_of(provisioner)
    assert result.state is model.RunState.FAILED
    assert f"no licence for {SHADOW}:" in result.reason
    assert site.processes() == []


# ---- playbooks in trouble ---------------------------------------------------------------


def playbooks(folder: Path, provision: str) -> Path:
    return playbooks_with(folder, "provision.yml", textwrap.dedent(provision))


HANGS = """
    - hosts: all
      gather_facts: false
      tasks:
        - name: Wait for ever
          ansible.builtin.command: sleep 9876
"""


def test_a_playbook_that_hangs_is_ended_with_its_modules(site: Site, tmp_path: Path) -> None:
    provisioner = site.provisioner(playbooks(tmp_path / "books", HANGS))
    provisioner.provision(replace(site.order(), timeout_s=4.0))
    eventually(lambda: sleepers(site))  # it has reached the task
    assert any("payload" in name for name in temporary_files(site)), (
        "the killed module was to leave something"
    )
    result = result_of(provisioner)
    assert (result.state, result.reason) == (
        model.RunState.FAILED,
        "timed out after 4 s in task Wait for ever",
    )
    assert sleepers(site) == []
    assert temporary_files(site) == []
    provisioner.close()


def temporary_files(site: Site) -> list[str]:
    """What runs of this site keep while they run."""
    return [path.name for path in (site.run_dir / site.instance / "runs").rglob("*")]


def sleepers(site: Site) -> list[int]:
    """Processes of this site's hanging module, by their command and label."""
    return [
        pid
        for pid, label in ansible_processes.labels().items()
        if f"-{site.instance}-" in label and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    ]


def test_negative_control_without_the_label_scan_the_module_of_a_hanging_playbook_lives_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioner = site.provisioner(playbooks(tmp_path / "books", HANGS))
    asked = []
    with monkeypatch.context() as broken:
        broken.setattr(ansible_processes, "end_run", lambda label: asked.append(label) or True)
        provisioner.provision(site.order())
        eventually(lambda: sleepers(site))
        provisioner.close()
        assert sleepers(site) != []
    (label,) = asked
    assert ansible_processes.end_run(label)
    assert sleepers(site) == []


HANDS_BACK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_stats:
        data: {{address: "{}", port: "{}"}}
"""
NO_ADDRESS = "provision.yml handed back no address and port (set_stats):"


@pytest.mark.parametrize(
    ("provision", "reason"),
    [
        pytest.param(
            "- hosts: all\n  gather_facts: false\n  tasks:\n"
            "    - name: Ask the stars\n      ansible.builtin.fail:\n        msg: they are not right\n",
            "task Ask the stars: they are not right",
            id="a failing task: its name and message",
        ),
        pytest.param(
            "- hosts: [all\n", "provision.yml ended with status 4:", id="broken YAML: what Ansible printed"
        ),
        pytest.param("[]\n", "provision.yml", id="an empty playbook"),
        pytest.param(
            "- hosts: all\n  gather_facts: false\n  tasks: []\n",
            "provision.yml handed back no address and port",
            id="a playbook that hands nothing back",
        ),
        pytest.param(
            HANDS_BACK.format("fd00::g", 80), f"{NO_ADDRESS} {{'address': 'fd00::g'", id="no address"
        ),
        pytest.param(HANDS_BACK.format("10.77.1.2", "http"), NO_ADDRESS, id="a port in words"),
        pytest.param(
            HANDS_BACK.format("{{ 'x' * 3000000 }}", 80), NO_ADDRESS, id="an address of three megabytes"
        ),
        pytest.param(
            HANDS_BACK.format("{{ lookup('pipe', 'printf \\\\377') }}", 80), "", id="bytes that are not UTF-8"
        ),
    ],
)
def test_a_playbook_fails_with_a_reason_in_one_line(
    site: Site, tmp_path: Path, provision: str, reason: str
) -> None:
    provisioner = site.provisioner(playbooks(tmp_path / "books", provision))
    provisioner.provision(site.order())
    result = result_of(provisioner)
    assert result.state is model.RunState.FAILED
    assert result.reason
    assert result.reason.startswith(reason), result.reason
    assert "\n" not in result.reason
    assert len(result.reason) <= 500
    provisioner.close()


@pytest.mark.usefixtures("original")
def test_deprovisioning_ends_the_provisioning_that_is_under_way(site: Site, tmp_path: Path) -> None:
    provisioner = site.provisioner(playbooks(tmp_path / "books", HANGS))
    provisioner.provision(site.order())
    eventually(lambda: sleepers(site))
    provisioner.deprovision(site.order())
    result = result_of(provisioner)  # one result: that of the removal
    assert (result.state, result.reason) == (model.RunState.DONE, "")
    assert sleepers(site) == []
    assert list(provisioner.running()) == []
    provisioner.close()


@pytest.mark.usefixtures("original")
def test_close_ends_what_is_running_but_no_shadow(site: Site, tmp_path: Path) -> None:
    first = site.provisioner()
    first.provision(site.order())
    made = result_of(first)
    first.close()
    second = site.provisioner(playbooks(tmp_path / "books", HANGS))
    second.provision(site.order("web-1-s2"))
    eventually(lambda: sleepers(site))
    second.close()
    assert sleepers(site) == []
    assert site.get(SHADOW, made.port or 0) == "web-1-s1"


@pytest.mark.usefixtures("original")
def test_a_directory_that_was_being_prepared_when_the_run_was_killed_is_found_and_removed(
    site: Site,
) -> None:
    order = site.order(fresh_directory={"options": [], "prepare": ["sleep", "9876"]})
    first = site.provisioner()
    first.provision(order)
    eventually(lambda: sleepers(site))
    first.close()
    assert sleepers(site) == []
    data = site.run_dir.parent / "data"
    assert [path.name for path in data.glob("*/*/data")] == ["data"], "the fault hit: it was left"
    second = site.provisioner()
    (found,) = second.existing([("host-a", "netns"), ("host-b", "netns")]).found
    assert (found.shadow, found.host, found.service, found.parent) == ("web-1-s1", "host-b", "web", "web-1")
    second.deprovision(order)
    assert result_of(second).reason == ""
    assert list(data.iterdir()) == []
    second.close()


CONTROLLER = """
import sys, time
from ipaddress import IPv4Address
from pathlib import Path
from tests.netns.test_provision_netns import Site
site = Site(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
site.provisioner(Path(sys.argv[5])).provision(site.order())
time.sleep(60)
"""

STARTS_AND_HANGS = """
    - hosts: all
      gather_facts: false
      tasks:
        - name: Make the shadow
          ansible.builtin.include_role:
            name: netns
            tasks_from: provision
        - name: Wait for ever
          ansible.builtin.command: sleep 9876
"""


@pytest.mark.usefixtures("original")
def test_after_kill_9_of_the_controller_in_mid_run_the_next_one_has_one_shadow(
    site: Site, tmp_path: Path
) -> None:
    books = playbooks(tmp_path / "books", STARTS_AND_HANGS)
    arguments = [site.instance, site.first, site.second, str(site.run_dir), str(books)]
    controller = subprocess.Popen([sys.executable, "-c", CONTROLLER, *arguments], cwd=ROOT)
    eventually(lambda: sleepers(site))
    eventually(lambda: any("payload" in name for name in temporary_files(site)))
    controller.kill()
    controller.wait()
    before = site.processes()
    # Not the module's own files: it may end by itself, for its terminal is gone, and then it removes them.
    assert temporary_files(site) != [], "the killed controller was to leave something"
    provisioner = site.provisioner()
    assert sleepers(site) == []  # what the dead one left running
    assert temporary_files(site) == []
    provisioner.provision(site.order())
    made = result_of(provisioner)
    assert made.state is model.RunState.DONE
    assert site.processes() == before
    assert len(before) == 1
    provisioner.close()


@pytest.mark.usefixtures("original")
def test_two_shadows_at_once_on_one_host_get_two_ports(site: Site, provisioner: AnsibleProvisioner) -> None:
    for shadow in ("web-1-s1", "web-1-s2"):
        provisioner.provision(site.order(shadow, port_range=[21000, 21001]))
    results: list[model.RunResult] = []
    eventually(lambda: results.extend(provisioner.results()) or len(results) == 2)
    assert [result.reason for result in results] == ["", ""]
    assert {result.port for result in results} == {21000, 21001}
