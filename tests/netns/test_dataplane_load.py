# SPDX-License-Identifier: Apache-2.0
"""Loading, attaching, reading back and unloading, in namespaces and with real maps."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import model
from controlplane.adapters import (
    attach,
    kernel_types,
    layout,
    libbpf,
    loader,
    pins,
    preflight,
    redirects,
    slot_table,
    steering,
)
from controlplane.adapters.bcc import PROGRAM, Compiled, ProgramSizes
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.libbpf import XdpMode
from controlplane.adapters.maps import open_instance, opened
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from controlplane.ports import DataplaneError

BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
# r0 = XDP_PASS; exit
PASS_ALL = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)

WEB = model.VirtualService(
    "web", IPv4Address("203.0.113.10"), 80, model.Protocol.TCP, model.OnDown.RESET, ring_size=251
)


def live(name: str, last: int, **changes: object) -> model.Member:
    member = model.Member(name, "web", IPv4Address(f"10.201.{last}.2"), 8080, model.Role.LIVE)
    return replace(member, **changes)


def shadow(name: str, last: int, parent: str) -> model.Member:
    return model.Member(name, "web", IPv4Address(f"10.201.{last}.2"), 8081, model.Role.SHADOW, parent)


def install_some(dataplane: MapDataplane) -> None:
    steps: list[model.Step] = [
        model.InstallService(WEB),
        model.InstallMember(live("web-1", 1)),
        model.InstallMember(live("web-2", 2, down=True)),
        model.InstallMember(shadow("web-1-a", 3, "web-1")),
        model.InstallMember(shadow("web-1-b", 2, "web-1")),
        model.SetRing("web", {"web-1": 1.0, "web-2": 0.5}),
        model.SetSlots("web-1", {"web-1-a": 1.0, "web-1-b": 0.3}),
        model.SetSpill("web-1", 0.35),
        model.SetLimit("web-1", 12),
        model.SetLimit("web-1-a", 3),
        model.SetDraining("web-1-b", True),
    ]
    for step in steps:
        dataplane.apply(step)


def xdp(topology: Topology, interface: str) -> libbpf.XdpState:
    with network.entered(topology.namespace(AP)):
        return libbpf.xdp_query(socket.if_nametoindex(interface))


def test_it_attaches_in_native_mode_and_unload_leaves_nothing(
    topology: Topology, config: model.Config
) -> None:
    with network.entered(topology.namespace(AP)):
        done = loader.load(config, BPF_DIR)
    assert [a.mode for a in done.attachments] == [XdpMode.NATIVE] * 4
    assert pins.folder(config.instance).stat().st_mode & 0o777 == 0o700
    loader.unload(config.instance)
    loader.unload(config.instance)
    assert not pins.folder(config.instance).exists()
    assert not (pins.LOCKS / f"{config.instance}.lock").exists()
    assert {xdp(topology, name).mode for name in config.interfaces} == {XdpMode.NONE}


def test_a_kernel_that_does_not_describe_itself_steers_and_says_that_lost_frames_are_not_counted(
    topology: Topology, config: model.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_types, "_BTF", Path("/nowhere"))
    assert [problem.what for problem in preflight.uncounted()]
    try:
        with network.entered(topology.namespace(AP)):
            done = loader.load(config, BPF_DIR)
            assert [a.mode for a in done.attachments] == [XdpMode.NATIVE] * 4
            assert "/nowhere" in done.uncounted
            dataplane = MapDataplane.open(config.instance, MachineClock())
            assert {one.redirects for one in dataplane.interface_counts()} == {None}
            monkeypatch.undo()
            assert loader.load(config, BPF_DIR).uncounted == "", "the next load makes up for it"
            assert None not in {one.redirects for one in dataplane.interface_counts()}
            dataplane.close()
    finally:
        loader.unload(config.instance)


def test_loading_again_keeps_what_is_installed_and_drops_interfaces_no_longer_named(
    loaded: MapDataplane, topology: Topology, config: model.Config
) -> None:
    install_some(loaded)
    before = loaded.installed()
    with network.entered(topology.namespace(AP)):
        done = loader.load(replace(config, interfaces=config.interfaces[:2]), BPF_DIR)
    assert not done.fresh
    assert loaded.installed() == before
    assert xdp(topology, config.interfaces[0]).mode is XdpMode.NATIVE
    assert xdp(topology, config.interfaces[3]).mode is XdpMode.NONE


def test_other_sizes_are_refused_with_the_way_out(
    loaded: MapDataplane, topology: Topology, config: model.Config
) -> None:
    bigger = replace(config, sizes=replace(config.sizes, endpoints=128))
    with network.entered(topology.namespace(AP)), pytest.raises(DataplaneError, match="penumbra unload"):
        loader.load(bigger, BPF_DIR)
    assert xdp(topology, config.interfaces[0]).mode is XdpMode.NATIVE


def test_another_layout_is_refused_with_the_way_out(loaded: MapDataplane, config: model.Config) -> None:
    maps = open_instance(config.instance)
    maps.settings["layout"] += 1
    with pytest.raises(DataplaneError, match=r"another version.*penumbra unload"):
        open_instance(config.instance)
    maps.close()


def test_an_instance_that_is_not_loaded_is_an_error_that_says_so() -> None:
    with pytest.raises(DataplaneError, match=r"not loaded.*penumbra load"):
        open_instance(f"nobody-{os.getpid()}")


def test_a_missing_interface_is_refused_before_anything_is_made(
    topology: Topology, config: model.Config
) -> None:
    with network.entered(topology.namespace(AP)), pytest.raises(DataplaneError, match="nosuch"):
        loader.load(replace(config, interfaces=(*config.interfaces, "nosuch")), BPF_DIR)
    assert not pins.folder(config.instance).exists()
    assert not (pins.LOCKS / f"{config.instance}.lock").exists()


def test_a_foreign_program_is_named_not_displaced_and_outlives_ours(
    topology: Topology, config: model.Config
) -> None:
    interface = config.interfaces[-1]
    with network.entered(topology.namespace(AP)):
        program = libbpf.prog_load("foreigner", PASS_ALL, "GPL")
        ifindex = socket.if_nametoindex(interface)
        link = libbpf.xdp_link_create(program, ifindex, libbpf.XDP_FLAGS_DRV_MODE)
        try:
            foreign = libbpf.xdp_query(ifindex)
            with pytest.raises(DataplaneError, match=f"foreigner.*{foreign.program_id}.*ip -d link show"):
                loader.load(config, BPF_DIR)
            assert not pins.folder(config.instance).exists()
            assert xdp(topology, config.interfaces[0]).mode is XdpMode.NONE

            loader.load(replace(config, interfaces=config.interfaces[:-1]), BPF_DIR)
            with pytest.raises(DataplaneError, match="foreigner"):
                loader.load(config, BPF_DIR)
            assert xdp(topology, config.interfaces[0]).mode is XdpMode.NATIVE
            loader.unload(config.instance)
            assert libbpf.xdp_query(ifindex) == foreign
        finally:
            loader.unload(config.instance)
            os.close(link)
            os.close(program)


def test_generic_mode_is_a_fallback_that_is_told(
    topology: Topology, config: model.Config, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        with network.entered(topology.namespace(AP)):
            done = loader.load(replace(config, interfaces=("lo",)), BPF_DIR)
            assert attach.attached(config.instance)[0].mode is XdpMode.GENERIC
        assert done.attachments[0].mode is XdpMode.GENERIC
        assert "native" in done.attachments[0].reason
        assert "GENERIC" in caplog.text
    finally:
        loader.unload(config.instance)


def test_what_a_load_that_died_left_is_cleared_away(topology: Topology, config: model.Config) -> None:
    try:
        with network.entered(topology.namespace(AP)):
            loader.load(config, BPF_DIR)
            (pins.folder(config.instance) / "steer").unlink()  # pinned last: as if it never came so far
            (pins.folder(config.instance) / "rtt").unlink()
            with pytest.raises(DataplaneError, match="only in part"):
                open_instance(config.instance)
            assert loader.load(config, BPF_DIR).fresh
    finally:
        loader.unload(config.instance)


def test_unload_works_when_the_interface_is_gone(topology: Topology, config: model.Config) -> None:
    ap = topology.namespace(AP)
    network.run(["ip", "-n", ap, "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])
    with network.entered(ap):
        loader.load(replace(config, interfaces=("gone0",)), BPF_DIR)
        network.run(["ip", "-n", ap, "link", "delete", "gone0"])
        assert [a.mode for a in attach.attached(config.instance)] == [XdpMode.NONE]
        loader.unload(config.instance)
    assert not pins.folder(config.instance).exists()


def test_a_folder_that_others_may_write_is_refused(topology: Topology, config: model.Config) -> None:
    pins.make_folder(config.instance).chmod(0o777)
    try:
        with (
            network.entered(topology.namespace(AP)),
            pytest.raises(DataplaneError, match="writable by"),
        ):
            loader.load(config, BPF_DIR)
    finally:
        pins.folder(config.instance).chmod(0o700)
        loader.unload(config.instance)


def test_a_new_process_reads_back_what_was_installed(loaded: MapDataplane, config: model.Config) -> None:
    install_some(loaded)
    again = MapDataplane.open(config.instance, MachineClock())
    assert again.installed() == loaded.installed()
    members = again.installed().members
    assert members["web-1"].spill == 0.35
    assert members["web-1"].slots == {"web-1-a": 1.0, "web-1-b": 0.3}
    assert {name: member.limit for name, member in members.items() if member.limit} == {
        "web-1": 12,
        "web-1-a": 3,
    }
    assert members["web-2"].down
    assert members["web-1-b"].draining
    assert again.installed().services["web"].ring == {"web-1": 1.0, "web-2": 0.5}
    again.close()


def test_a_limit_that_another_process_sets_is_seen(loaded: MapDataplane, config: model.Config) -> None:
    install_some(loaded)
    assert loaded.installed().members["web-1"].limit == 12
    with closing(MapDataplane.open(config.instance, MachineClock())) as other:
        other.apply(model.SetLimit("web-1", 0))
    assert loaded.installed().members["web-1"].limit == 0


def test_who_is_installed_anew_has_no_limit(loaded: MapDataplane) -> None:
    install_some(loaded)
    loaded.apply(model.RemoveMember("web-1-a"))
    loaded.apply(model.InstallMember(shadow("web-1-a", 3, "web-1")))
    assert loaded.installed().members["web-1-a"].limit == 0


def test_affinity_and_on_down_change_while_a_service_is_installed(loaded: MapDataplane) -> None:
    install_some(loaded)
    before = loaded.installed()
    changed = replace(WEB, on_down=model.OnDown.KEEP, affinity=model.Affinity.SOURCE)
    loaded.apply(model.InstallService(changed))
    after = loaded.installed()
    assert after.services["web"] == replace(changed, ring=before.services["web"].ring)
    assert after.members == before.members
    loaded.apply(model.InstallService(WEB))
    assert loaded.installed() == before


def test_every_step_taken_twice_is_the_same_as_once(loaded: MapDataplane) -> None:
    install_some(loaded)
    before = loaded.installed()
    install_some(loaded)
    loaded.apply(model.SetRing("web", {"web-1": 1.0, "web-2": 0.5}))
    after = loaded.installed()
    assert after.services == before.services
    assert after.members.keys() == before.members.keys()
    for name in ("web-1", "web-1-a", "nobody"):
        loaded.apply(model.RemoveMember(name))
        loaded.apply(model.RemoveMember(name))
    loaded.apply(model.RemoveService("web"))
    loaded.apply(model.RemoveService("web"))
    assert "web" not in loaded.installed().services


def test_a_removed_member_is_out_of_ring_and_slots_and_may_come_back_at_the_same_address(
    loaded: MapDataplane, config: model.Config
) -> None:
    install_some(loaded)
    maps = open_instance(config.instance)
    index = steering.endpoint_rows(maps)["web-1-a"]
    old = steering.reference(maps, index)
    loaded.apply(model.RemoveMember("web-1-a"))
    assert loaded.installed().members["web-1"].slots == {"web-1-b": 0.3}
    loaded.apply(model.InstallMember(shadow("web-1-c", 3, "web-1")))
    assert steering.endpoint_rows(maps)["web-1-c"] == index
    assert steering.reference(maps, index) != old
    assert not (maps.slots == old).any()
    # Another address gets another index while the first one rests.
    loaded.apply(model.RemoveMember("web-1-c"))
    loaded.apply(model.InstallMember(shadow("web-1-d", 1, "web-1")))
    assert steering.endpoint_rows(maps)["web-1-d"] != index
    maps.close()


def test_a_member_at_an_index_that_another_had_counts_from_zero(
    loaded: MapDataplane, config: model.Config
) -> None:
    install_some(loaded)
    maps = open_instance(config.instance)
    index = steering.endpoint_rows(maps)["web-1-a"]
    maps.services["flags"] |= layout.SERVICE_REQUESTS_HTTP1
    maps.forwarded["packets"][:, index] = maps.request_counters["requests"][:, index] = 7
    maps.rtt[index, 100] = maps.response[index, 200] = 7
    maps.reasons[:, 0, 0] = 1  # as if these CPUs had seen them
    found = loaded.counters()
    assert int(found.packets[index]) == int(found.requests[index]) == 7 * len(maps.forwarded)
    assert [None] not in loaded.quantiles_ms((0.5,))["web-1-a"]
    loaded.apply(model.RemoveMember("web-1-a"))
    loaded.apply(model.InstallMember(shadow("web-1-c", 3, "web-1")))
    found = loaded.counters()
    assert found.rows["web-1-c"] == index
    assert int(found.packets[index]) == int(found.requests[index]) == 0
    assert loaded.quantiles_ms((0.5,))["web-1-c"] == ([None], [None])
    maps.forwarded["packets"][0, index] += 2
    assert int(loaded.counters().packets[index]) == 2
    loaded.apply(model.InstallMember(shadow("web-1-c", 3, "web-1")))
    assert int(loaded.counters().packets[index]) == 2, "installed again it is the same member"
    maps.close()


def test_an_address_that_is_taken_is_refused(loaded: MapDataplane) -> None:
    install_some(loaded)
    with pytest.raises(DataplaneError, match=r"10\.201\.3\.2:8081 is 'web-1-a'"):
        loaded.apply(model.InstallMember(shadow("other", 3, "web-1")))


def test_writing_to_an_unloaded_instance_is_refused(loaded: MapDataplane, config: model.Config) -> None:
    loader.unload(config.instance)
    with pytest.raises(DataplaneError, match="unloaded meanwhile"):
        loaded.apply(model.SetSpill("web-1", 0.5))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 10), min_size=1, max_size=8))
def test_slots_are_shared_by_weight_to_within_one_and_few_move(weights: dict[str, float]) -> None:
    table = slot_table.place(weights)
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(table.count(name) - weight / total * layout.SHADOW_SLOTS) < 1
    first = min(weights)
    changed = {**weights, first: weights[first] * 1.1}
    moved = sum(a != b for a, b in zip(table, slot_table.place(changed), strict=True))
    must = sum(
        abs(slot_table.counts(weights).get(n, 0) - slot_table.counts(changed).get(n, 0)) for n in weights
    )
    assert moved <= 8 * (must // 2) + 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(0, 1),
    weights=st.lists(st.integers(1, 20), min_size=2, max_size=2),
)
def test_rings_and_spill_hold_what_was_asked(loaded: MapDataplane, share: float, weights: list[int]) -> None:
    install_some(loaded)
    ring = {"web-1": weights[0] / 10, "web-2": weights[1] / 10}
    loaded.apply(model.SetRing("web", ring))
    loaded.apply(model.SetSpill("web-1", share))
    installed = loaded.installed()
    assert installed.services["web"].ring == ring
    assert installed.members["web-1"].spill == share


# ---- what became of pins and interfaces --------------------------------------------------


def veth(ap: str, name: str) -> None:
    network.run(["ip", "-n", ap, "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer"])


def xdp_links(ap: str) -> list[str]:
    """Interfaces that a program is attached to."""
    shown = network.run(["ip", "-n", ap, "-o", "link", "show"])
    return sorted(
        line.split()[1].partition("@")[0].rstrip(":") for line in shown.splitlines() if "xdp" in line
    )


def test_an_interface_that_was_made_anew_is_told_and_attached_by_the_next_load(
    topology: Topology, config: model.Config
) -> None:
    ap = topology.namespace(AP)
    veth(ap, "again0")
    try:
        with network.entered(ap):
            loader.load(replace(config, interfaces=("clients", "again0")), BPF_DIR)
            network.run(["ip", "-n", ap, "link", "delete", "again0"])
            assert "gone" in attach.at_interface(config.instance, "again0").reason
            veth(ap, "again0")
            told = attach.at_interface(config.instance, "again0")
            assert (told.mode, "anew" in told.reason) == (XdpMode.NONE, True)
            done = loader.load(replace(config, interfaces=("clients", "again0")), BPF_DIR)
            assert not done.fresh
            assert attach.at_interface(config.instance, "again0").mode is XdpMode.NATIVE
        assert xdp_links(ap) == ["again0", "clients"]
    finally:
        loader.unload(config.instance)
        network.run(["ip", "-n", ap, "link", "delete", "again0"])


def link_ids(config: model.Config) -> set[int]:
    found = set()
    for pin in pins.folder(config.instance).glob(pins.LINK_PREFIX + "*"):
        link = libbpf.obj_get(pin, libbpf.Kind.LINK)
        found.add(libbpf.link_info(link).id)
        os.close(link)
    return found


def test_interfaces_that_changed_names_keep_their_attachments(
    topology: Topology, config: model.Config
) -> None:
    ap = topology.namespace(AP)
    veth(ap, "one0")
    try:
        with network.entered(ap):
            loader.load(replace(config, interfaces=("one0", "one0-peer")), BPF_DIR)
            links = link_ids(config)
            for old, new in (("one0", "spare0"), ("one0-peer", "one0"), ("spare0", "one0-peer")):
                network.run(["ip", "-n", ap, "link", "set", old, "name", new])
            loader.load(replace(config, interfaces=("one0", "one0-peer")), BPF_DIR)
            assert xdp_links(ap) == ["one0", "one0-peer"]
            assert link_ids(config) == links, "they were steered all the time"
            network.run(["ip", "-n", ap, "link", "set", "one0-peer", "name", "two0"])
            loader.load(replace(config, interfaces=("one0", "two0")), BPF_DIR)
            assert xdp_links(ap) == ["one0", "two0"]
            assert sorted(a.interface for a in attach.attached(config.instance)) == ["one0", "two0"]
        loader.unload(config.instance)
        assert xdp_links(ap) == []
    finally:
        loader.unload(config.instance)
        network.run(["ip", "-n", ap, "link", "delete", "one0"])


def test_an_instance_of_another_namespace_is_not_taken_over(
    loaded: MapDataplane, config: model.Config
) -> None:
    before = attach.attached(config.instance)
    with pytest.raises(DataplaneError, match=r"another network namespace.*penumbra unload"):
        loader.load(replace(config, interfaces=("lo",)), BPF_DIR)
    assert attach.attached(config.instance) == before


def replaced(config: model.Config, name: str, fd: int) -> None:
    pin = pins.folder(config.instance) / name
    pin.unlink()
    libbpf.obj_pin(fd, pin)


@pytest.mark.parametrize("name", ["steer", "vips"])
@pytest.mark.parametrize("other", ["a program", "a map of the same shape", "another map of ours"])
def test_a_pin_that_is_not_what_was_loaded_is_refused_and_unloaded(
    loaded: MapDataplane, topology: Topology, config: model.Config, name: str, other: str
) -> None:
    if other == "a program":
        fd = libbpf.prog_load("foreigner", PASS_ALL, "GPL")
    elif other == "another map of ours":
        fd = libbpf.obj_get(pins.folder(config.instance) / "service_targets", libbpf.Kind.MAP)
    else:
        fd = libbpf.map_create(libbpf.MapType.HASH, "stranger", 20, 4, config.sizes.services)
    replaced(config, name, fd)
    os.close(fd)
    before = xdp(topology, "clients")
    with network.entered(topology.namespace(AP)), pytest.raises(DataplaneError, match="penumbra unload"):
        loader.load(config, BPF_DIR)
    assert xdp(topology, "clients") == before, "the program that steers goes on"
    loader.unload(config.instance)
    assert xdp_links(topology.namespace(AP)) == []


def test_pins_that_are_no_links_and_folders_among_the_pins_stop_neither_load_nor_unload(
    loaded: MapDataplane, topology: Topology, config: model.Config
) -> None:
    folder = pins.folder(config.instance)
    program = libbpf.obj_get(folder / "steer", libbpf.Kind.PROGRAM)
    replaced(config, "link_clients", program)
    os.close(program)
    (folder / "link_folder").mkdir()
    with network.entered(topology.namespace(AP)):
        loader.load(config, BPF_DIR)
    assert xdp_links(topology.namespace(AP)) == sorted(config.interfaces)
    loader.unload(config.instance)
    assert xdp_links(topology.namespace(AP)) == []
    assert not folder.exists()


def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load of this test gets the same program and maps: compiling takes most of a load's time."""
    compile_program, made = loader.compile_program, []

    def copy_of_the_first(bpf_dir: Path, sizes: ProgramSizes, *, frags: bool) -> Compiled:
        made.append(made[0] if made else compile_program(bpf_dir, sizes, frags=frags))
        maps = {name: os.dup(fd) for name, fd in made[0].maps.items()}
        return replace(made[0], program_fd=os.dup(made[0].program_fd), maps=maps)

    compile_tracers, tracers = redirects.compile_tracers, dict[str, int]()

    def copies_of_the_first(*arguments: Any, **named: Any) -> dict[str, int]:
        tracers.update(tracers or compile_tracers(*arguments, **named))
        return {name: os.dup(fd) for name, fd in tracers.items()}

    monkeypatch.setattr(loader, "compile_program", copy_of_the_first)
    monkeypatch.setattr(redirects, "compile_tracers", copies_of_the_first)


CHANGES = ("bpf_obj_pin", "bpf_link_create", "bpf_link_update", "bpf_raw_tracepoint_open")


def killed_at(step: int, config: model.Config, source: Path = BPF_DIR) -> bool:
    """Loads in a process that is killed after its ``step``-th change; False: it made fewer."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    call, steps = libbpf.call, iter(range(1000))

    def counting(operation: str, function: str, *arguments: object) -> int:
        result = call(operation, function, *arguments)
        if function in CHANGES and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    libbpf.call = counting
    try:
        loader.load(config, source)
    finally:
        os._exit(0)


def test_a_load_killed_after_any_step_leaves_nothing_that_the_next_one_stumbles_over(
    topology: Topology, config: model.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ap, steps = replace(config, interfaces=("clients", "host1")), topology.namespace(AP), 0
    compiled_once(monkeypatch)
    try:
        with network.entered(ap):
            loader.load(config, BPF_DIR)
            pinned = len(list(pins.folder(config.instance).iterdir()))
            loader.unload(config.instance)
            while killed_at(steps, config):
                steps += 1
                loader.load(config, BPF_DIR)
                assert xdp_links(ap) == ["clients", "host1"]
                assert len(attach.attached(config.instance)) == 2
                loader.unload(config.instance)
                assert xdp_links(ap) == []
        assert steps == pinned + 4, "each pin, and each link before it was pinned"
    finally:
        loader.unload(config.instance)


def another_version(folder: Path, name: str, text: str = "") -> Path:
    """A copy of the sources whose program does the same, and was compiled from something else."""
    made = folder / name
    shutil.copytree(BPF_DIR, made)
    source = made / "steer.c"
    source.write_text(f"/* {name} */\n{source.read_text()}{text}")
    return made


def test_another_version_of_the_program_takes_over_and_maps_stay(
    loaded: MapDataplane, topology: Topology, config: model.Config, tmp_path: Path
) -> None:
    install_some(loaded)
    before, earlier = loaded.installed(), {xdp(topology, name).program_id for name in config.interfaces}
    answered = refusal(config)
    with network.entered(topology.namespace(AP)):
        maps = open_instance(config.instance)
        assert int(maps.settings["icmp_limit"]) == math.ceil(config.icmp_limit_per_s * layout.TICK_S)
        assert not loader.load(replace(config, icmp_limit_per_s=0.0), BPF_DIR).replaced
        assert int(maps.settings["icmp_limit"]) == 0
        maps.close()
        assert not loader.load(config, BPF_DIR).replaced
        assert refusal(config) == answered
        newer = another_version(tmp_path, "newer")
        assert loader.load(config, newer).replaced
        assert not loader.load(config, newer).replaced
    now = {xdp(topology, name).program_id for name in config.interfaces}
    assert len(now) == 1
    assert now.isdisjoint(earlier)
    assert refusal(config) not in (0, answered), "its own program answers what it refuses"
    assert loaded.installed() == before
    maps = open_instance(config.instance)
    program = libbpf.obj_get(pins.folder(config.instance) / "steer", libbpf.Kind.PROGRAM)
    assert {libbpf.prog_info(program).id} == now
    os.close(program)
    maps.close()


def refusal(config: model.Config) -> int:
    """Id of what answers packets that can't go on, of the program that steers; 0: nothing does."""
    pin = pins.folder(config.instance) / "refusals"
    array, program = (
        libbpf.obj_get(pin, libbpf.Kind.MAP),
        libbpf.obj_get(pin.with_name("steer"), libbpf.Kind.PROGRAM),
    )
    try:
        assert libbpf.map_info(array).id in libbpf.prog_maps(program)
        return int.from_bytes(libbpf.map_lookup(array, bytes(4), 4) or b"", "little")
    finally:
        os.close(array)
        os.close(program)


def one_field_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version whose ``struct service`` has one: its sources, and from now on its layout."""
    made = another_version(folder, "wider")
    header = made / "structs.h"
    text, end = header.read_text(), "};\n_Static_assert(sizeof(struct service) == 64"
    assert text.count(end) == 1, "structs.h has changed: name the struct's end anew"
    header.write_text(text.replace(end, "\t__u64 cost;\n};\n_Static_assert(sizeof(struct service) == 72"))
    wider = np.dtype([*layout.SERVICE.descr, ("cost", "<u8")])
    monkeypatch.setattr(layout, "SERVICE", wider)
    monkeypatch.setitem(layout.STRUCTS, "service", wider)
    return made


def test_a_version_with_one_field_more_is_refused_before_anything_is_touched(
    loaded: MapDataplane,
    topology: Topology,
    config: model.Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_some(loaded)
    before, earlier = loaded.installed(), [xdp(topology, name) for name in config.interfaces]
    pinned = {pin.name: pin.stat().st_ino for pin in pins.folder(config.instance).iterdir()}
    with monkeypatch.context() as newer:
        wider = one_field_more(tmp_path, newer)
        with network.entered(topology.namespace(AP)):
            with pytest.raises(DataplaneError, match=r"another version.*penumbra unload"):
                loader.load(config, wider)
            assert [xdp(topology, name) for name in config.interfaces] == earlier
            assert {pin.name: pin.stat().st_ino for pin in pins.folder(config.instance).iterdir()} == pinned
            loader.unload(config.instance)
            assert loader.load(config, wider).fresh, "the version itself is sound"
            loader.unload(config.instance)
            assert not pins.folder(config.instance).exists()
    assert before.services, "there was something to lose"


def lock_is_free(instance: str) -> bool:
    with (pins.LOCKS / f"{instance}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_who_writes_to_the_maps_does_not_wait_for_the_compiler(
    loaded: MapDataplane,
    topology: Topology,
    config: model.Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For that is ten seconds in which no controller takes the dead out."""
    compiled: list[bool] = []
    monkeypatch.setattr(loader, "compile_program", watched(loader.compile_program, config, compiled))
    monkeypatch.setattr(redirects, "compile_tracers", watched(redirects.compile_tracers, config, compiled))
    with network.entered(topology.namespace(AP)):
        assert loader.load(config, another_version(tmp_path, "newer")).replaced
    assert compiled == [True, True]


def watched(compile_: Callable[..., Any], config: model.Config, free: list[bool]) -> Callable[..., Any]:
    def watch(*arguments: Any, **named: Any) -> Any:
        free.append(lock_is_free(config.instance))
        return compile_(*arguments, **named)

    return watch


def test_what_was_compiled_for_maps_that_are_no_more_is_not_used(
    loaded: MapDataplane,
    topology: Topology,
    config: model.Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody unloads and loads while it is compiled."""
    compile_program, free = loader.compile_program, list[bool]()

    def meanwhile(*arguments: Any, **named: Any) -> Compiled:
        made = compile_program(*arguments, **named)
        free.append(lock_is_free(config.instance))
        if len(free) == 1:
            loader.unload(config.instance)
            assert loader.load(config, BPF_DIR).fresh
        return made

    monkeypatch.setattr(loader, "compile_program", meanwhile)
    with network.entered(topology.namespace(AP)):
        assert loader.load(config, another_version(tmp_path, "newer")).replaced
        assert free == [True, False, False], "ahead, the fresh one, and once more"
        maps = opened(config.instance)
        ids = {libbpf.map_info(fd).id for fd in maps.values()}
        for fd in maps.values():
            os.close(fd)
        fd = libbpf.obj_get(pins.folder(config.instance) / PROGRAM, libbpf.Kind.PROGRAM)
        assert libbpf.prog_maps(fd) <= ids
        os.close(fd)


def test_a_version_that_does_not_compile_changes_nothing(
    loaded: MapDataplane, topology: Topology, config: model.Config, tmp_path: Path
) -> None:
    install_some(loaded)
    before, earlier = loaded.installed(), [xdp(topology, name).program_id for name in config.interfaces]
    broken = another_version(tmp_path, "broken", "int extra(void) { return none_such; }\n")
    with network.entered(topology.namespace(AP)), pytest.raises(DataplaneError, match="none_such"):
        loader.load(config, broken)
    assert [xdp(topology, name).program_id for name in config.interfaces] == earlier
    assert loaded.installed() == before


def test_where_one_interface_refuses_the_others_keep_the_version_they_had(
    loaded: MapDataplane, topology: Topology, config: model.Config, tmp_path: Path
) -> None:
    ap = topology.namespace(AP)
    veth(ap, "taken0")
    foreign = libbpf.prog_load("foreign", PASS_ALL, "GPL")
    earlier = [xdp(topology, name).program_id for name in config.interfaces]
    try:
        with network.entered(ap):
            link = libbpf.xdp_link_create(foreign, socket.if_nametoindex("taken0"), libbpf.XDP_FLAGS_DRV_MODE)
            wider = replace(config, interfaces=(*config.interfaces, "taken0"))
            with pytest.raises(DataplaneError, match="not displaced"):
                loader.load(wider, another_version(tmp_path, "newer"))
            os.close(link)
        assert [xdp(topology, name).program_id for name in config.interfaces] == earlier
    finally:
        os.close(foreign)
        network.run(["ip", "-n", ap, "link", "delete", "taken0"])


def test_a_change_of_versions_killed_after_any_step_is_finished_by_the_next_load(
    loaded: MapDataplane, topology: Topology, config: model.Config, tmp_path: Path
) -> None:
    install_some(loaded)
    before, steps = loaded.installed(), 0
    narrow = replace(config, interfaces=("clients", "host1"))
    versions = [another_version(tmp_path, name) for name in ("one", "other")]  # in turn: each compiled once
    with network.entered(topology.namespace(AP)):
        loader.load(narrow, BPF_DIR)
        while killed_at(steps, narrow, newer := versions[steps % 2]):
            steps += 1
            assert {xdp(topology, name).mode for name in narrow.interfaces} == {XdpMode.NATIVE}
            assert loader.load(narrow, newer).replaced
            assert len({xdp(topology, name).program_id for name in narrow.interfaces}) == 1
            assert refusal(narrow)
    assert steps == 4, "two links, two pins"
    assert loaded.installed() == before
    for name in ("steer", "refusals"):
        assert sorted(p.name for p in pins.folder(config.instance).glob(f"{name}*")) == [name]
