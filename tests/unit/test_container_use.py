# SPDX-License-Identifier: Apache-2.0
"""What containers and hosts use, as the engine's API (recorded answers), cAdvisor and cgroup v1 tell it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from urllib.parse import unquote

import pytest

from controlplane.adapters import cadvisor
from controlplane.adapters.cgroup import Cgroup
from controlplane.adapters.load_source import BackgroundLoadSource
from controlplane.model import UsageKind, UsageSource
from tests.unit.test_load_source import FAST, http, read, serving, trouble, until

ID, OTHER = "ab" * 32, "cd" * 32
GIB = 2**30


def stats(cpu_s: float, used: int, idle: int = 0, limit: int = GIB) -> dict:
    """As Docker 20.10 answers one-shot, on cgroup v1; what is not used here left out."""
    return {
        "read": "2026-01-01T00:00:00Z",
        "preread": "0001-01-01T00:00:00Z",
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": round(cpu_s * 1e9),
                "usage_in_kernelmode": 1,
                "usage_in_usermode": 2,
            },
            "system_cpu_usage": 10**12,
            "online_cpus": 4,
            "throttling_data": {"periods": 0},
        },
        "precpu_stats": {"cpu_usage": {"total_usage": 0}},
        "memory_stats": {"usage": used, "limit": limit, "stats": {"total_inactive_file": idle}},
    }


class Api:
    """An engine, of which containers may be made anew or end."""

    def __init__(self, *, nano_cpus: int = 0, quota: int = 0) -> None:
        self.host_config = {"NanoCpus": nano_cpus, "CpuQuota": quota, "CpuPeriod": 0, "CpusetCpus": ""}
        self.there = {ID: ("web-1", stats(10.0, GIB // 2, GIB // 4))}
        self.asked: list[str] = []

    def answer(self, peer: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += peer.recv(65536)
        path = unquote(head.split()[1].decode())
        self.asked.append(path)
        found = self.found(path)
        body = json.dumps({"message": "no such container"} if found is None else found).encode()
        status = "404 Not Found" if found is None else "200 OK"
        peer.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    def found(self, path: str) -> object:
        if path == "/info":
            return {"NCPU": 4, "MemTotal": 8 * GIB}
        if path.startswith("/containers/json"):
            filters = json.loads(path.partition("filters=")[2])
            names = filters.get("name", ["^/.*$"])
            labelled = filters.get("label") in (None, ["penumbra.instance=t", "penumbra.shadow=web-1-s1"])
            return [
                {"Id": one}
                for one, (name, _) in self.there.items()
                if labelled and re.match(names[0], f"/{name}")
            ]
        identity = path.split("/")[2]
        if identity not in self.there:
            return None
        told = self.there[identity][1]
        return told if "/stats?stream=false&one-shot=true" in path else {"HostConfig": self.host_config}


@pytest.fixture
def reader():
    source = BackgroundLoadSource()
    yield source
    source.close()


def of(port: int, selector: str = "web-1") -> UsageSource:
    return UsageSource(UsageKind.DOCKER, f"tcp://127.0.0.1:{port}", selector=selector, **FAST)


@pytest.mark.parametrize(
    ("limits", "cpus"), [({}, 4.0), ({"nano_cpus": 500_000_000}, 0.5), ({"quota": 200_000}, 2.0)]
)
def test_a_container_is_as_busy_as_what_its_limits_leave_to_it(reader, limits, cpus):
    api = Api(**limits)
    with serving(api.answer) as port:
        reader.watch({"a": of(port)})
        first = read(reader)
        assert (first.cpu, first.memory) == (None, 0.25), "less what is given back when it is needed"
        assert (first.of_cpus, first.of_memory_bytes) == (cpus, GIB)
        api.there[ID] = ("web-1", stats(10.005, GIB // 2))
        found = [first]
        until(lambda: found.extend(reader.usages()) or found[-1].cpu, "reading after that")
    at = next(at for at, usage in enumerate(found) if usage.cpu)
    assert found[at].cpu == pytest.approx(0.005 / (found[at].at_s - found[at - 1].at_s) / cpus, rel=1e-3)


def test_a_container_that_was_made_anew_is_found_again_and_its_counters_are_not_compared(reader):
    api = Api()
    with serving(api.answer) as port:
        reader.watch({"a": of(port)})
        read(reader, lambda usage: usage.cpu is not None)
        api.there = {}
        assert "no running container is web-1" in trouble(reader)
        api.there = {OTHER: ("web-1", stats(0.1, GIB // 8))}
        after = read(reader, lambda usage: usage.memory == 0.125)
        assert after.cpu is None
        assert reader.troubles() == {}


def test_a_shadow_is_found_by_its_labels_and_two_of_a_name_are_told(reader):
    api = Api()
    with serving(api.answer) as port:
        reader.watch({"a": of(port, "penumbra.instance=t,penumbra.shadow=web-1-s1")})
        assert read(reader).memory == 0.25
        api.there[OTHER] = ("web-2", stats(1.0, GIB // 8))
        reader.watch({"b": of(port, "penumbra.instance=t,penumbra.shadow=web-1-s1 ".strip() + ",x=y")})
        assert "no running container" in trouble(reader, "b")
        reader.watch({"c": of(port, "web-.")})
        assert "2 running containers are web-." in trouble(reader, "c")


def test_a_host_uses_what_all_its_containers_do(reader):
    api = Api()
    api.there[OTHER] = ("db", stats(50.0, 2 * GIB))
    with serving(api.answer) as port:
        reader.watch({"host:h": of(port, "")})
        first = read(reader)
        assert first.memory == pytest.approx(2.25 / 8)
        assert (first.of_cpus, first.of_memory_bytes) == (4.0, 8.0 * GIB)
        api.there = {ID: ("web-1", stats(10.004, GIB)), OTHER: ("db", stats(50.004, GIB))}
        found = [first]
        until(lambda: found.extend(reader.usages()) or found[-1].cpu, "reading after that")
    at = next(at for at, usage in enumerate(found) if usage.cpu)
    assert found[at].cpu == pytest.approx(0.008 / (found[at].at_s - found[at - 1].at_s) / 4.0, rel=1e-3)


def test_an_engine_that_can_not_be_asked_is_said_with_its_reason(reader, tmp_path):
    places = {
        "ssh": UsageSource(UsageKind.DOCKER, "ssh://host-b", selector="", **FAST),
        "gone": UsageSource(UsageKind.DOCKER, f"unix://{tmp_path}/none.sock", selector="a", **FAST),
    }
    reader.watch(places)
    assert trouble(reader, "ssh") == "ssh://host-b: unix:///PATH or tcp://HOST:PORT can be asked"
    assert "none.sock" in trouble(reader, "gone") or "No such file" in trouble(reader, "gone")


# ---- cAdvisor -------------------------------------------------------------------------------

NAMED = f'id="/docker/{ID}",image="lab:latest",name="web-1"'
SHADOW = (
    'container_label_penumbra_instance="t",container_label_penumbra_shadow="web-1-s1",'
    f'id="/docker/{OTHER}",name="penumbra.t.web-1-s1"'
)


def exposition(cpu_s: float, *, per_cpu: bool = False) -> str:
    cpus = (
        f'container_cpu_usage_seconds_total{{cpu="cpu00",{NAMED}}} {cpu_s / 2}\n'
        f'container_cpu_usage_seconds_total{{cpu="cpu01",{NAMED}}} {cpu_s / 2}\n'
        if per_cpu
        else f'container_cpu_usage_seconds_total{{cpu="total",{NAMED}}} {cpu_s}\n'
    )
    return (
        "# TYPE container_cpu_usage_seconds_total counter\n"
        f"{cpus}"
        f'container_cpu_usage_seconds_total{{cpu="total",{SHADOW}}} 5\n'
        f'container_cpu_usage_seconds_total{{cpu="total",id="/"}} {cpu_s * 2}\n'
        f"container_spec_cpu_quota{{{NAMED}}} 50000\n"
        f"container_spec_cpu_period{{{NAMED}}} 100000\n"
        f"container_spec_cpu_period{{{SHADOW}}} 100000\n"
        f"container_spec_memory_limit_bytes{{{NAMED}}} {GIB}\n"
        f"container_spec_memory_limit_bytes{{{SHADOW}}} 0\n"
        f'container_spec_memory_limit_bytes{{id="/"}} {8 * GIB}\n'
        f"container_memory_working_set_bytes{{{NAMED}}} {GIB // 4}\n"
        f"container_memory_working_set_bytes{{{SHADOW}}} {GIB}\n"
        f'container_memory_working_set_bytes{{id="/"}} {2 * GIB}\n'
        'machine_cpu_cores{machine_id="m"} 4\n'
        f'machine_memory_bytes{{machine_id="m"}} {8 * GIB}\n'
    )


@pytest.mark.parametrize("per_cpu", [False, True])
@pytest.mark.parametrize(
    ("selector", "cpu", "memory", "cpus"),
    [
        ("web-1", 0.4, 0.25, 0.5),
        ("penumbra.instance=t,penumbra.shadow=web-1-s1", 0.0, 0.125, 4.0),
        ("", 0.1, 0.25, 4.0),
    ],
)
def test_cadvisor_tells_of_a_container_its_shadow_and_the_host(per_cpu, selector, cpu, memory, cpus):
    before = cadvisor.told(exposition(10.0, per_cpu=per_cpu), selector, 100.0)
    now = cadvisor.told(exposition(11.0, per_cpu=per_cpu), selector, 105.0)
    usage = cadvisor.usage(before, now, "a", 15.0)
    assert usage.cpu == pytest.approx(cpu)
    assert usage.memory == pytest.approx(memory)
    assert usage.of_cpus == cpus
    assert cadvisor.usage(before._replace(at_s=1.0), now, "a", 15.0).cpu is None, "long ago is as none"
    assert cadvisor.usage(now, before._replace(at_s=106.0), "a", 15.0).cpu in (None, 0.0), "it fell"
    assert cadvisor.usage(before._replace(group="/docker/x"), now, "a", 15.0).cpu is None


def test_cadvisor_that_tells_nothing_of_a_container_is_trouble(reader):
    with serving(http(exposition(1.0))) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        reader.watch(
            {
                "a": UsageSource(UsageKind.CADVISOR, url, selector="web-9", **FAST),
                "b": UsageSource(UsageKind.CADVISOR, url, selector="web-1", **FAST),
            }
        )
        assert 'tells nothing of name="web-9"' in trouble(reader)
        assert read(reader, lambda usage: usage.cpu is not None).member == "b"


# ---- cgroup v1 ------------------------------------------------------------------------------


def test_a_group_of_version_1_is_read_where_there_is_none_of_version_2(tmp_path):
    files = {
        "cpuacct/x/web-1/cpuacct.usage": "5000000000",
        "cpu/x/web-1/cpu.cfs_quota_us": "150000",
        "cpu/x/web-1/cpu.cfs_period_us": "100000",
        "cpuset/x/web-1/cpuset.effective_cpus": "0-3",
        "memory/x/web-1/memory.usage_in_bytes": "600",
        "memory/x/web-1/memory.limit_in_bytes": "1000",
        "memory/x/web-1/memory.stat": "cache 5\ninactive_file 9\ntotal_inactive_file 200",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    group = Cgroup(UsageSource(UsageKind.CGROUP, f"{tmp_path}/x/web-1", **FAST), tmp_path)

    async def twice() -> list:
        found = [await group.read("a")]
        await asyncio.sleep(0.01)
        (tmp_path / "cpuacct/x/web-1/cpuacct.usage").write_text("5003000000\n")
        return [*found, await group.read("a")]

    first, second = asyncio.run(twice())
    assert (first.cpu, first.memory, first.of_cpus, first.of_memory_bytes) == (None, 0.4, 1.5, 1000.0)
    assert second.cpu == pytest.approx(min(0.003 / (second.at_s - first.at_s) / 1.5, 1.0))
    (tmp_path / "memory/x/web-1/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu/x/web-1/cpu.cfs_quota_us").write_text("-1\n")
    free = asyncio.run(group.read("a"))
    assert free.of_cpus == 4.0
    assert free.memory == pytest.approx(400 / free.of_memory_bytes)
    assert free.of_memory_bytes > 1e8


def test_this_hosts_own_tree_of_version_1_is_read_where_there_is_one():
    if not Path("/sys/fs/cgroup/cpuacct/cpuacct.usage").exists():
        pytest.skip("no cgroup v1 here")
    usage = asyncio.run(Cgroup(UsageSource(UsageKind.CGROUP, "/sys/fs/cgroup", **FAST)).read("a"))
    assert 0.0 <= usage.memory <= 1.0
    assert usage.of_cpus >= 1
