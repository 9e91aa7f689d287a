# SPDX-License-Identifier: Apache-2.0
"""Which container a shadow is: the rules, one by one."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
HOSTILE = [
    "{{ lookup('pipe', 'touch /tmp/x') }}",
    "{% for x in y %}",
    "'\"`$(id)",
    "a\nb\\n\r\tc",
    "!unsafe {{ 1 }}",
    "\N{SNOWMAN}\N{GRINNING FACE}\ufffd",
]


def loaded() -> ModuleType:
    path = PLAYBOOKS / "module_utils/penumbra_container.py"
    spec = importlib.util.spec_from_file_location("penumbra_container", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["penumbra_container"] = module
    spec.loader.exec_module(module)
    return module


rules = loaded()

ORIGINAL: dict[str, Any] = {
    "Id": "4e77832",
    "Name": "/web",
    "Image": "sha256:1",
    "RepoDigests": [],
    "Config": {
        "Image": "web:latest",
        "Hostname": "4e77832",
        "Env": ["A=1", "UPSTREAM=http://10.0.0.1:80/x"],
        "Cmd": ["serve", "--peer", "110.0.0.1:80", "--at=10.0.0.1:80", "10.0.0.1:8080"],
        "Entrypoint": None,
        "Labels": {"team": "web", "com.docker.compose.project": "shop"},
        "User": "web",
        "Healthcheck": None,
    },
    "HostConfig": {
        "ContainerIDFile": "",
        "NetworkMode": "default",
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "80"}]},
        "Memory": 1 << 27,
        "Binds": ["/usr:/usr:ro"],
    },
    "Mounts": [{"Type": "bind", "Source": "/usr", "Destination": "/usr", "RW": False}],
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}]},
        "Networks": {"bridge": {"IPAddress": "172.17.0.2"}},
    },
}


def wishes(**given: Any) -> Any:
    its = {
        "container": "penumbra.lab.web-1-s1",
        "shadow": "web-1-s1",
        "parent_address": "10.0.0.1",
        "parent_port": 80,
        "protocol": "tcp",
        "address": "10.0.0.2",
        "first_port": 20001,
        "labels": {"penumbra.shadow": "web-1-s1"},
    }
    return rules.Wishes(**(its | given))


def original(**changed: Any) -> dict[str, Any]:
    """With parts of Config, HostConfig or what is beside them in place of what is there."""
    made = copy.deepcopy(ORIGINAL)
    for key, value in changed.items():
        for part in (made["Config"], made["HostConfig"], made["NetworkSettings"]):
            if key in part:
                part[key] = value
                break
        else:
            (made if key in made else made["HostConfig"])[key] = value
    return made


DATA = {"Type": "volume", "Name": "data", "Source": "/v/data", "Destination": "/data", "RW": True}


def test_names_addresses_and_ports_are_the_shadows_and_all_else_is_the_originals() -> None:
    clone = rules.clone_of(original(), wishes())
    assert clone.refusals == []
    assert (clone.address, clone.port) == ("10.0.0.2", 20001)
    body = clone.body
    assert (body["Image"], body["Hostname"], body["User"]) == ("sha256:1", "", "web")
    assert body["Env"] == ["A=1", "UPSTREAM=http://10.0.0.2:20001/x"]
    assert body["Cmd"][2:] == ["110.0.0.1:80", "--at=10.0.0.2:20001", "10.0.0.1:8080"]
    assert body["Labels"] == {"team": "web", "penumbra.shadow": "web-1-s1"}
    assert body["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "20001"}]}
    assert (body["HostConfig"]["Memory"], body["HostConfig"]["Binds"]) == (1 << 27, ["/usr:/usr:ro"])
    assert body["Entrypoint"] == [""], "the image's was not used by the original"


def test_nothing_but_what_a_rule_says_differs() -> None:
    told = rules.rows(original(), rules.clone_of(original(), wishes()), wishes())
    verdicts = {row["field"]: row["verdict"] for row in told}
    assert {field for field, verdict in verdicts.items() if verdict != "same"} == {
        "Name",
        "Config.Hostname",
        "Config.Env.UPSTREAM",
        "Config.Cmd",
        "Config.Labels.com.docker.compose.project",
        "Config.Labels.penumbra.shadow",
        "HostConfig.PortBindings",
        "Networks.bridge",
    }
    assert all(row["reason"] for row in told if row["verdict"] != "same"), "each says why"


def test_negative_control_a_field_that_is_lost_is_told() -> None:
    clone = rules.clone_of(original(), wishes())
    del clone.body["HostConfig"]["Memory"]
    told = {row["field"]: row["verdict"] for row in rules.rows(original(), clone, wishes())}
    assert told["HostConfig.Memory"] == "left out"


def test_a_plan_shows_no_value_of_environment_command_or_labels() -> None:
    secret = original(
        Env=["TOKEN=canary", "URL=http://canary@10.0.0.1:80"],
        Cmd=["x", "canary 10.0.0.1:80"],
        Labels={"a": "canary"},
        Healthcheck={"Test": ["CMD", "canary"]},
        LogConfig={"Type": "fluentd", "Config": {"token": "canary"}},
    )
    asked = wishes(environment_set={"NEW": "canary"})
    assert "canary" not in json.dumps(rules.rows(secret, rules.clone_of(secret, asked), asked))


@pytest.mark.parametrize("mode", ["host", "none", "container:abc"])
def test_a_container_without_a_network_of_its_own_is_refused(mode: str) -> None:
    (reason,) = rules.clone_of(original(NetworkMode=mode), wishes()).refusals
    assert f"web runs with --network {mode}" in reason


def test_a_host_name_that_was_the_containers_name_becomes_the_shadows() -> None:
    assert rules.clone_of(original(Hostname="web"), wishes()).body["Hostname"] == "web-1-s1"
    assert rules.clone_of(original(Hostname="chosen"), wishes()).body["Hostname"] == "chosen"


@pytest.mark.parametrize("value", HOSTILE)
def test_values_go_over_as_they_are(value: str) -> None:
    odd = original(Env=[f"A={value}"], Cmd=[value], Labels={"l": value}, Entrypoint=[value])
    body = rules.clone_of(rules.decoded(rules.encoded(odd | {"version": 1})), wishes()).body
    assert body["Env"] == [f"A={value}"]
    assert (body["Cmd"], body["Entrypoint"], body["Labels"]["l"]) == ([value], [value], value)


@given(st.text(), st.text())
@settings(max_examples=50, deadline=None)
def test_a_kept_specification_is_text_that_no_template_can_be_in_and_comes_back(key: str, value: str) -> None:
    kept = original(Labels={key: value}) | {"version": 1}
    text = rules.encoded(kept)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert rules.decoded(text) == kept


def test_a_specification_is_the_same_however_often_it_is_read() -> None:
    """Engines tell mounts in any order, and what a container is doing."""
    two = [DATA, DATA | {"Destination": "/other", "Name": "other"}]
    one, again = original(Mounts=two), original(Mounts=two[::-1])
    one["State"] = {"StartedAt": "then", "Pid": 1, "Health": {"Log": ["a"]}}
    again["State"] = {"StartedAt": "then", "Pid": 2}
    assert rules.encoded(rules.specification(one, [])) == rules.encoded(rules.specification(again, []))
    again["State"]["StartedAt"] = "now"
    assert rules.encoded(rules.specification(one, [])) != rules.encoded(rules.specification(again, []))


@pytest.mark.parametrize(
    ("text", "why"),
    [("%%%", "damaged"), ("e30=", "damaged"), (base64.b64encode(b'{"version": 9}').decode(), "version 9")],
)
def test_what_is_no_specification_is_refused(text: str, why: str) -> None:
    with pytest.raises(rules.RefusedError, match=why):
        rules.decoded(text)


def test_messages_quote_no_confidential_value_however_it_is_quoted() -> None:
    odd = 'can"ary\n\N{SNOWMAN}'
    texts = {"environment_set": {"B": "second canary"}}
    one = original(Env=[f"A={odd}"], Cmd=["/bin/serve", "third canary"])
    said = " ".join([odd, json.dumps(odd), json.dumps(odd, ensure_ascii=False), "second canary"])
    clean = rules.redacted(f"exec /bin/serve third canary: {said}", one, texts)
    assert "ary" not in clean
    assert "/bin/serve" in clean, "which file it is stays"


# ---- mounts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        pytest.param({}, "two writers may destroy its data", id="neither shared nor fresh"),
        pytest.param({"fresh_mounts": ("/data",)}, "no sync driver", id="nobody fills a fresh one"),
        pytest.param(
            {"fresh_mounts": ("/data",), "shared_mounts": ("/data",), "synced": True},
            "one of the two is allowed",
            id="both",
        ),
        pytest.param({"shared_mounts": ("/dat",)}, "two writers", id="another mount is shared"),
    ],
)
def test_a_writable_mount_is_refused(asked: dict[str, Any], why: str) -> None:
    (reason,) = rules.clone_of(original(Binds=["data:/data"], Mounts=[DATA]), wishes(**asked)).refusals
    assert why in reason
    assert "/data" in reason


@pytest.mark.parametrize(
    "host",
    [
        pytest.param({"Binds": ["data:/data"]}, id="-v"),
        pytest.param({"Mounts": [{"Type": "volume", "Source": "data", "Target": "/data"}]}, id="--mount"),
        pytest.param({"Mounts": [{"Type": "volume", "Target": "/data"}]}, id="--mount without a name"),
        pytest.param({"Binds": []}, id="the image's VOLUME"),
    ],
)
def test_a_fresh_mount_is_another_volume_wherever_it_came_from(host: dict[str, Any]) -> None:
    one = original()
    one["HostConfig"] |= {"Binds": []} | host
    one["Mounts"] = [DATA]
    clone = rules.clone_of(one, wishes(fresh_mounts=("/data",), synced=True))
    assert clone.refusals == []
    assert clone.fresh_volumes == {"penumbra.lab.web-1-s1.0": "/data"}
    assert [m["Source"] for m in clone.body["HostConfig"]["Mounts"]] == ["penumbra.lab.web-1-s1.0"]
    assert clone.body["HostConfig"]["Binds"] == []
    shared = rules.clone_of(one, wishes(shared_mounts=("/data",)))
    named = [m["Source"] for m in shared.body["HostConfig"]["Mounts"]] + shared.body["HostConfig"]["Binds"]
    assert named in (["data"], ["data:/data"]), "shared is the very same volume"


def test_on_another_host_a_missing_folder_is_not_made_but_refused_by_the_engine() -> None:
    clone = rules.clone_of(original(Binds=["/usr:/usr:ro,rslave", "/x:/x:z"]), wishes(remote=True))
    assert clone.body["HostConfig"]["Binds"] == ["/x:/x:z"]
    (mount,) = clone.body["HostConfig"]["Mounts"]
    assert mount == {
        "Type": "bind",
        "Source": "/usr",
        "Target": "/usr",
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rslave"},
    }


# ---- references to other containers -----------------------------------------------------


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ({"Links": ["/db:/web/store"]}, "linked to db"),
        ({"PidMode": "container:abc"}, "shares PidMode"),
        ({"IpcMode": "container:abc"}, "shares IpcMode"),
    ],
)
def test_what_names_other_containers_is_kept_on_their_engine_and_refused_on_another(
    host: dict[str, Any], why: str
) -> None:
    assert rules.clone_of(original(**host), wishes()).refusals == []
    (reason,) = rules.clone_of(original(**host), wishes(remote=True)).refusals
    assert why in reason


def test_links_are_told_and_taken_in_two_forms() -> None:
    body = rules.clone_of(original(Links=["/db:/web/store"]), wishes()).body
    assert body["HostConfig"]["Links"] == ["db:store"]


def test_the_network_it_is_made_in_is_joined_first_and_one_it_left_is_not_named() -> None:
    two = {"a": {"IPAddress": ""}, "back": {"IPAddress": "10.0.0.1"}}
    clone = rules.clone_of(original(NetworkMode="back", Networks=two), wishes())
    assert list(clone.networks) == ["back", "a"]
    clone = rules.clone_of(original(NetworkMode="gone", Networks=two), wishes())
    assert clone.body["HostConfig"]["NetworkMode"] == next(iter(clone.networks))


# ---- the user's rules -------------------------------------------------------------------


def test_the_users_rules_come_first_and_fill_in_what_the_shadow_is() -> None:
    asked = wishes(
        rewrite=({"find": "10.0.0.1:80/x", "replace": "{address}/{port}/{name}/{other}"},),
        environment_set={"A": "{name}", "B": "{port}"},
        environment_drop=("C",),
    )
    clone = rules.clone_of(original(Env=["A=1", "UPSTREAM=http://10.0.0.1:80/x", "C=3"]), asked)
    assert clone.body["Env"] == [
        "UPSTREAM=http://10.0.0.2/20001/web-1-s1/{other}",
        "C",  # else the image's would be taken
        "A=web-1-s1",
        "B=20001",
    ]
    assert clone.notes["Config.Env.C"][0] == "left out"


def test_a_rule_that_finds_nothing_is_refused() -> None:
    (reason,) = rules.clone_of(original(), wishes(rewrite=({"find": "no", "replace": "x"},))).refusals
    assert reason.startswith("rewrite.0: ")


def test_an_address_that_only_the_engine_will_know_is_refused_unless_said_otherwise() -> None:
    routed = original(
        Ports={}, PortBindings={}, Networks={"bridge": {"IPAddress": "10.0.0.1"}}, Cmd=["serve"]
    )
    (reason,) = rules.clone_of(routed, wishes()).refusals
    assert "Config.Env.UPSTREAM names 10.0.0.1:80" in reason
    asked = wishes(environment_set={"UPSTREAM": "http://localhost:{port}/x"})
    clone = rules.clone_of(routed, asked)
    assert clone.refusals == []
    assert (clone.address, clone.port) == (None, 80)
    (reason,) = rules.clone_of(routed, wishes(environment_set={"UPSTREAM": "{address}"})).refusals
    assert "{address}" in reason


# ---- what the engine made of it ---------------------------------------------------------


def test_what_an_engine_does_not_take_is_named() -> None:
    clone = rules.clone_of(original(), wishes())
    created = {"Config": dict(clone.body), "HostConfig": dict(clone.body["HostConfig"]), "Mounts": []}
    assert rules.untaken(clone, created) == []
    created["HostConfig"] = created["HostConfig"] | {"Memory": 0}
    assert rules.untaken(clone, created) == ["HostConfig.Memory"]
