# SPDX-License-Identifier: Apache-2.0
"""The rules of processes, and what is said of a folder that has none."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from controlplane.adapters.ansible import check_playbooks

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
OLD = {"name": "web-1", "address": "10.0.0.1", "port": "80"}
NEW = {"name": "web-1-s1", "address": "10.0.0.2", "port": "20001"}
OPTIONS = {"name": ["--name"], "address": ["--address", "--bind"], "port": ["--port"]}


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def netns() -> ModuleType:
    # Ansible puts it there when it packs the module.
    loaded("ansible.module_utils.penumbra_proc", PLAYBOOKS / "module_utils/penumbra_proc.py")
    return loaded("penumbra_netns", PLAYBOOKS / "library/penumbra_netns.py")


@pytest.mark.parametrize(
    ("argv", "becomes", "found"),
    [
        pytest.param(
            ["srv", "--address", "10.0.0.1", "--port=80", "--name", "web-1"],
            ["srv", "--address", "10.0.0.2", "--port=20001", "--name", "web-1-s1"],
            {"name", "address", "port"},
            id="values after listed options, with a blank or an equals sign",
        ),
        pytest.param(
            ["srv", "--workers", "80", "--peer", "10.0.0.1"],
            ["srv", "--workers", "80", "--peer", "10.0.0.1"],
            set(),
            id="the same values after other options stay",
        ),
        pytest.param(
            ["srv", "--port", "8080", "--bind", "0.0.0.0"],
            ["srv", "--port", "8080", "--bind", "0.0.0.0"],
            set(),
            id="other values after listed options stay",
        ),
        pytest.param(
            ["srv", "tcp://10.0.0.1:80/x", "110.0.0.1:80", "10.0.0.1:8080"],
            ["srv", "tcp://10.0.0.2:20001/x", "110.0.0.1:80", "10.0.0.1:8080"],
            {"address", "port"},
            id="ADDRESS:PORT anywhere in an argument, but no longer number",
        ),
    ],
)
def test_arguments_are_rewritten_by_rule(
    netns: ModuleType, argv: list[str], becomes: list[str], found: set[str]
) -> None:
    assert netns.rewritten(argv, OLD, NEW, OPTIONS) == (becomes, found)


def test_placeholders_are_filled_and_other_braces_left_alone(netns: ModuleType) -> None:
    assert netns.filled("{address}:{port} {{ 7*7 }} {other}", NEW) == "10.0.0.2:20001 {{ 7*7 }} {other}"


def test_the_search_for_a_port_starts_at_the_same_one_for_the_same_shadow(netns: ModuleType) -> None:
    first = {netns.first_port("lab", f"web-1-s{i}", 20000, 20999) for i in range(50)}
    assert first == {netns.first_port("lab", f"web-1-s{i}", 20000, 20999) for i in range(50)}
    assert all(20000 <= port <= 20999 for port in first)
    assert len(first) > 40


def test_the_shipped_playbooks_are_right() -> None:
    assert check_playbooks(PLAYBOOKS) == []


@pytest.mark.parametrize("name", ["provision.yml", "inspect.yml", "plan.yml"])
def test_ansible_accepts_the_syntax_of(name: str) -> None:
    ansible = Path(sys.executable).parent / "ansible-playbook"
    command = [
        str(ansible),
        "--syntax-check",
        "-i",
        "host,",
        "-e",
        '{"order": {"target": "netns"}}',
        str(PLAYBOOKS / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("provision", "problem"),
    [
        pytest.param(None, "provision.yml can't be read: No such file or directory", id="it is missing"),
        pytest.param("- hosts: [all\n", "provision.yml is not YAML", id="it is not YAML"),
        pytest.param("hosts: all\n", "provision.yml is not a playbook", id="it is no list of plays"),
    ],
)
def test_a_folder_without_a_playbook_is_named_with_what_is_wrong(
    tmp_path: Path, provision: str | None, problem: str
) -> None:
    (tmp_path / "deprovision.yml").write_text("- hosts: all\n")
    if provision is not None:
        (tmp_path / "provision.yml").write_text(provision)
    (said,) = check_playbooks(tmp_path)
    assert problem in said
    assert "\n" not in said


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    (said,) = check_playbooks(tmp_path / "none")
    assert "none is not a folder" in said


CHURN = """
import os, socket
listening = socket.create_server(("127.0.0.1", 0))
print(os.fstat(listening.fileno()).st_ino, flush=True)
while True:
    some = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    for descriptor in some:
        os.close(descriptor)
"""


def test_a_busy_server_is_found_though_it_closes_descriptors_meanwhile():
    proc = loaded("penumbra_proc_busy", PLAYBOOKS / "module_utils/penumbra_proc.py")
    with subprocess.Popen([sys.executable, "-c", CHURN], stdout=subprocess.PIPE, text=True) as busy:
        try:
            inode = int(busy.stdout.readline())
            found = [proc.holders([busy.pid], {inode}) for _ in range(200)]
        finally:
            busy.kill()
    assert found == [[busy.pid]] * 200


def test_a_clone_that_ended_before_anybody_looked_is_not_waited_for_nor_taken_for_running(
    netns: ModuleType, tmp_path: Path
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    records = netns.Records(str(tmp_path), "i")
    record = {"shadow": "web-1-s1", "address": "127.0.0.9", "port": 1, "pid": ended.pid, "start_ticks": None}
    records.write(record)
    asked = {"instance": "i", "name": "web-1-s1", "netns": "", "protocol": "tcp", "start_timeout_s": 600.0}
    assert netns.running_record(asked, records) is None
    assert netns.processes_of(asked, records) == set()
    with pytest.raises(netns.RefusedError, match="ended right after its start"):
        netns.await_listening(asked, records, record)
    assert records.read("web-1-s1") is None


def test_arguments_with_an_ipv6_address_are_rewritten(netns: ModuleType) -> None:
    old = {"name": "web-1", "address": "2001:db8::1", "port": "80"}
    new = {"name": "web-1-s1", "address": "2001:db8::2", "port": "8081"}
    argv = ["serve", "--listen", "[2001:db8::1]:80", "--peer", "[2001:db8::11]:80", "--bind", "2001:db8::1"]
    made, found = netns.rewritten(argv, old, new, {"name": [], "address": ["--bind"], "port": []})
    assert made == [
        *("serve", "--listen", "[2001:db8::2]:8081", "--peer", "[2001:db8::11]:80", "--bind", "2001:db8::2")
    ]
    assert found == {"address", "port"}


# ---- data ---------------------------------------------------------------------------------


def test_a_data_directory_is_found_and_replaced_after_its_options(netns: ModuleType) -> None:
    for argv, becomes in (
        (["srv", "-D", "/a", "--log", "/a"], ["srv", "-D", "/b", "--log", "/a"]),
        (["srv", "--dir=/a", "-x"], ["srv", "--dir=/b", "-x"]),
    ):
        assert netns.directory_named(argv, ["-D", "--dir"]) == "/a"
        assert netns.redirected(argv, ["-D", "--dir"], "/b") == becomes
    assert netns.directory_named(["-D", "x"][:1], ["-D"]) is None


def test_what_a_process_and_its_children_write_in_place_is_known(tmp_path: Path) -> None:
    proc = loaded("penumbra_proc_writes", PLAYBOOKS / "module_utils/penumbra_proc.py")
    shell = 'exec 3<>"$0/data" 4>>"$0/log" 5<"$0/read"; (echo ready; sleep 9876 6>"$0/child" & wait); :'
    (tmp_path / "read").touch()
    with subprocess.Popen(
        ["sh", "-c", shell, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as writer:
        try:
            assert writer.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 5
            wanted = {str(tmp_path / "data"), str(tmp_path / "child")}
            while (found := proc.written_files(writer.pid)) != wanted and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            os.killpg(writer.pid, signal.SIGKILL)
    assert found == wanted


@pytest.mark.parametrize(
    ("asked", "written", "reason"),
    [
        pytest.param({}, [], None, id="one that writes nothing"),
        pytest.param({"stateful": True}, [], "set fresh_directory", id="one whose data is copied"),
        pytest.param(
            {}, ["/data/a", "/data/b"], "has /data/a open for writing, and 1 files more", id="files"
        ),
        pytest.param({"shared_paths": ["/data"]}, ["/data/a"], None, id="files that may be shared"),
        pytest.param({"shared_paths": ["/dat"]}, ["/data/a"], "/data/a open", id="others may be"),
        pytest.param({"stateful": True, "fresh_directory": {"options": []}}, [], None, id="a new directory"),
    ],
)
def test_who_would_write_to_its_originals_files_is_refused(
    netns: ModuleType, asked: dict[str, object], written: list[str], reason: str | None
) -> None:
    p = {"parent": {"name": "db-1"}, "stateful": False, "fresh_directory": None, "shared_paths": [], **asked}
    kept = SimpleNamespace(identity=SimpleNamespace(pid=7), written=written)
    if reason is None:
        netns.check_shares_nothing(p, kept, None)
        return
    with pytest.raises(netns.RefusedError, match=reason):
        netns.check_shares_nothing(p, kept, None)


def test_a_shadow_of_which_only_its_directory_is_left_is_listed_and_removed(
    netns: ModuleType, tmp_path: Path
) -> None:
    record = {"instance": "i", "shadow": "db-1-s1", "service": "db", "parent": "db-1", "netns": ""}
    home = netns.Home(str(tmp_path), "i", "db-1-s1")
    home.make(record | {"address": "127.0.0.9", "port": 1}, os.getuid(), os.getgid())
    (home.data / "file").touch()
    asked = {
        "instance": "i",
        "name": "db-1-s1",
        "netns": "",
        "data_dir": str(tmp_path),
        "stop_timeout_s": 1.0,
    }
    (found,) = netns.listed(asked)["shadows"]
    assert (found["shadow"], found["port"]) == ("db-1-s1", 1)
    records = netns.Records(str(tmp_path / "run"), "i")
    assert netns.absent(asked, records) == {"changed": True}
    assert not (tmp_path / "i").exists()
    assert netns.listed(asked)["shadows"] == []
    assert netns.absent(asked, records) == {"changed": False}
