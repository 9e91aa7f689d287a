# SPDX-License-Identifier: Apache-2.0
"""Hosts of Ansible's inventory: read by Ansible itself, one set with the configuration's, and never lost."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane import config, inventory, model, requests
from controlplane.adapters.inventory import BackgroundInventory, InventoryReadError, read
from controlplane.cli import wiring
from controlplane.model import Host, Inventory, ShadowState
from tests import world as worlds
from tests.world import World

PATH = Path("/etc/penumbra/hosts")
YAML = """
all:
  children:
    edge:
      vars: {penumbra_region: eu-west, zone: "{{ inventory_hostname }}-zone"}
      children: {racks: {hosts: {rack-1.example.com: {penumbra_slots: 3, ansible_host: 10.0.0.7}}}}
      hosts: {host-b: {penumbra_price_per_hour: 0.25, docker_host: "unix:///run/b.sock"}}
    empty: {}
"""
SCRIPT = (
    '#!/bin/sh\necho \'{"dyn": {"hosts": ["d-1"]}, "_meta": {"hostvars": {"d-1": {"penumbra_slots": 2}}}}\'\n'
)


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts.sh"
    path.write_text(text)
    path.chmod(0o700)
    return path


def file_config(*hosts: str, **settings: object) -> model.Config:
    """host-a is the file's alone; the others are named, and not in it."""
    made = worlds.config(hosts=hosts, **settings)
    return replace(made, hosts={"host-a": made.hosts["host-a"]}, inventory=PATH)


def told(*names: str, **variables: object) -> Inventory:
    return Inventory({name: dict(variables) for name in names}, {"edge": names, "all": names})


# ---- as Ansible has it ---------------------------------------------------------------------


def test_a_folder_with_files_and_scripts_is_read_with_group_variables_and_templates_left_alone(tmp_path):
    (tmp_path / "hosts.yml").write_text(YAML)
    script(tmp_path, SCRIPT)
    found = read(tmp_path)
    assert found.hosts["host-b"] == {
        "penumbra_price_per_hour": 0.25,
        "docker_host": "unix:///run/b.sock",
        "penumbra_region": "eu-west",
        "zone": "{{ inventory_hostname }}-zone",
    }
    assert found.hosts["d-1"] == {"penumbra_slots": 2}
    assert set(found.groups["edge"]) == {"host-b", "rack-1.example.com"}
    assert found.groups["racks"] == ("rack-1.example.com",)
    assert set(found.groups["all"]) == {"host-b", "rack-1.example.com", "d-1"}
    assert found.groups["empty"] == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\necho broken\nexit 3\n", "non-zero exit code 3"),
        ("#!/bin/sh\necho '{}'\n", "holds no host"),
        ("#!/bin/sh\nsleep 60\n", "no answer within 1 s"),
    ],
)
def test_what_is_broken_empty_or_slow_is_an_error_with_its_reason(tmp_path, text, why):
    started = time.monotonic()
    with pytest.raises(InventoryReadError, match=why):
        read(script(tmp_path, text), timeout_s=1.0 if "sleep" in text else 30.0)
    assert time.monotonic() - started < 20
    left = [one for one in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in command(one)]
    assert left == [], "the script and all that it started has ended"


def command(of: Path) -> str:
    try:
        return of.read_text()
    except OSError:
        return ""


def test_it_is_read_in_the_background_and_the_last_good_one_stays(tmp_path):
    path = tmp_path / "hosts.yml"
    path.write_text(YAML)
    source = BackgroundInventory()
    try:
        source.watch(path)
        until(lambda: source.inventory() is not None)
        assert source.trouble() == ""
        path.write_text("a: [")
        source.read_again()
        until(lambda: source.trouble())
        assert "hosts.yml" in source.trouble()
        assert "host-b" in source.inventory().hosts
    finally:
        source.close()


def until(done) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_check_refuses_what_is_wrong_with_an_inventory_and_names_it(tmp_path):
    (tmp_path / "hosts.ini").write_text("[edge]\nb penumbra_slots=0\n")
    wrong = replace(file_config("nowhere"), inventory=tmp_path / "hosts.ini")
    assert wiring.against_inventory(wrong) == [
        "inventory host b: penumbra_slots: 0: 1 or more is allowed",
        "services.web.shadows.hosts.0: 'nowhere' is no host and no group of the inventory",
    ]
    gone = replace(wrong, inventory=tmp_path / "none")
    assert wiring.against_inventory(gone) == [f"inventory: {tmp_path}/none: there is no such file or folder"]
    assert wiring.against_inventory(replace(wrong, inventory=None)) == []


# ---- one set with the configuration's ------------------------------------------------------


def test_settings_are_host_variables_and_the_files_win():
    both = config.inventory_host(
        "b",
        {"penumbra_slots": 4, "penumbra_region": "eu", "netns": "x", "address": "10.0.0.1"},
        Host("b", 1, {"netns": "y"}, given=frozenset({"slots", "variables"})),
    )
    assert (both.slots, both.region) == (1, "eu")
    assert both.variables["netns"] == "y"
    assert both.variables["address"] == "10.0.0.1"
    alone = config.inventory_host("b", {"penumbra_capacity": {"cpus": 8, "memory": "16 GiB"}}, None)
    assert alone.capacity == model.HostCapacity(8.0, 16 * 2.0**30)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (
            {"penumbra_slots": "{{ n }}"},
            "inventory host b: penumbra_slots: '{{ n }}': a whole number is allowed",
        ),
        ({"penumbra_price_per_hour": -1}, "inventory host b: penumbra_price_per_hour: -1: a number from 0"),
        ({"penumbra_slotz": 1}, "inventory host b: penumbra_slotz: 1: unknown key (did you mean 'slots'?)"),
        (
            {"penumbra_usage": {"kind": "cgroup"}},
            "inventory host b: penumbra_usage.kind: 'cgroup': does not tell",
        ),
    ],
)
def test_a_setting_that_is_none_names_its_host_and_variable(variables, problem):
    with pytest.raises(config.ConfigError) as refused:
        config.inventory_host("b", variables, None)
    assert refused.value.problems[0].startswith(problem)
    resolved, problems = inventory.resolved(file_config("b"), Inventory({"b": variables, "c": {}}), {})
    assert problems[0].startswith(problem)
    assert resolved.hosts.keys() == {"host-a", "c"}


def test_groups_stand_for_their_hosts_each_once_and_unknown_names_are_told():
    asked = file_config("c", "edge", "nowhere")
    resolved, problems = inventory.resolved(asked, told("b", "c", ansible_host="10.0.0.9"), {})
    assert resolved.services["web"].shadows.hosts == ("c", "b", "nowhere")
    assert problems == ("services.web.shadows.hosts.2: 'nowhere' is no host and no group of the inventory",)
    assert "10.0.0.9/32" in map(str, resolved.direct)
    assert inventory.resolved(asked, None, {})[1] == (), "nothing is said before it was read"


def test_what_is_kept_is_read_back_and_anything_else_is_refused():
    gone = Host("old", variables={"netns": "x"}, gone=True)
    text = inventory.to_keep(told("b", netns="y"), [gone])
    assert inventory.parsed(text) == (told("b", netns="y"), {"old": gone})
    for damaged in ("[]", "{}", '{"read": 5, "gone": {}}'):
        with pytest.raises(ValueError, match="is damaged"):
            inventory.parsed(damaged)


def test_an_answer_that_is_none_is_refused():
    for raw in ([], {}, {"_meta": {}}, {"_meta": {"hostvars": {"a": 5}}}, {"_meta": {"hostvars": {}}}):
        with pytest.raises(ValueError, match=r"no answer|no host|no mapping"):
            inventory.listed(json.loads(json.dumps(raw)))


# ---- in the loop ---------------------------------------------------------------------------


def begun(*hosts: str, **settings: object) -> World:
    world = World(file_config(*hosts, max_per_endpoint=1, **settings))
    world.inventory.tells = told("host-b", "host-c", penumbra_slots=2, netns="b")
    return world


def test_shadows_go_to_hosts_of_the_inventory_with_its_variables():
    world = begun("edge")
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    assert world.store.records["web-1-s1"].host == "host-b"
    order = world.provisioner._asked["web-1-s1"]
    assert order.host.variables["netns"] == "b"
    assert world.provisioner.hosts.keys() == {"host-a", "host-b", "host-c"}


def test_a_host_that_vanished_gets_nothing_new_and_is_cleared_with_its_last_variables_after_a_restart_too():
    world = begun("edge", min_life_s=5.0, idle_s=5.0)
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    world.inventory.tells = told("host-c", netns="c")
    world.ticks(2, 110.0)
    assert any("host-b no longer there" in row.reason for row in world.store.rows)
    assert world.states() == [ShadowState.READY]
    assert next(one for one in world.controller.status().hosts if one.name == "host-b").gone
    world.restart()
    world.inventory.tells, world.inventory.why = None, "no answer within 30 s"
    world.ticks(120, 20.0)
    assert world.provisioner.exists == set()
    assert world.provisioner._asked["web-1-s1"].host.variables["netns"] == "b"
    requests.request_shadow_add(world.store, "web-1")
    world.ticks(3, 20.0)
    assert [one.host for one in world.store.records.values()] == ["host-c"], "the last good one stays"


def test_negative_control_a_host_that_is_forgotten_is_cleared_without_its_variables(monkeypatch):
    whole = inventory.resolved
    monkeypatch.setattr(inventory, "resolved", lambda config, read, gone: whole(config, read, {}))
    world = begun("edge", min_life_s=5.0, idle_s=5.0)
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    world.inventory.tells = told("host-c", netns="c")
    while not world.orders("deprovision"):
        world.tick(20.0)
    assert world.provisioner._asked["web-1-s1"].host == Host("host-b")


def test_trouble_is_told_until_it_is_over_and_a_reload_reads_it_again():
    world = begun("edge", "nowhere")
    world.ticks(2, 40.0)
    assert "'nowhere' is no host" in world.controller.status().troubles["inventory"]
    world.inventory.why = "no answer within 30 s"
    world.ticks(1, 40.0)
    assert "the last good one stays" in world.controller.status().troubles["inventory"]
    world.inventory.why = ""
    world.config = replace(file_config("edge"), max_shadows=7)
    requests.request_reload(world.store)
    world.ticks(2, 40.0)
    assert "inventory" not in world.controller.status().troubles
    assert world.inventory.reads == 1
    assert world.controller.status().hosts[0].name == "host-b"


def test_a_store_that_does_not_work_stops_neither_the_inventory_nor_a_reload_and_gets_it_later():
    world = World(file_config("edge", max_per_endpoint=1))
    world.store.broken = True
    world.restart()
    world.inventory.tells = told("host-b", netns="b")
    world.ticks(2, 40.0)
    assert [one.name for one in world.controller.status().hosts] == ["host-b"]
    world.config = replace(file_config("edge"), max_shadows=7)
    world.controller.reconfigure(world.config)
    world.ticks(2, 40.0)
    world.store.broken = False
    world.ticks(2, 40.0)
    assert inventory.parsed(world.store.values[inventory.KEPT])[0] == told("host-b", netns="b")
