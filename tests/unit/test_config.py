# SPDX-License-Identifier: Apache-2.0
"""A configuration is read whole, or refused with the field's path, the value and what is allowed."""

import math
import os
import re
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml

from controlplane import config, config_errors, config_text, model

GOOD = """
instance: lab
interfaces: [a, b]
hosts:
  h2: {slots: 2}
services:
  web:
    vip: 198.51.100.1
    port: 80
    endpoints:
      web-1: {address: 10.0.0.2, port: 8080, capacity: 40 flows/s}
    shadows: {hosts: [h2], lead_time: 500ms}
"""

SECOND = """
  api:
    vip: 198.51.100.2
    port: 80
    endpoints:
      api-1: {address: 10.0.0.3, port: 8080}
"""


def test_what_is_given_arrives_and_the_rest_has_the_models_defaults():
    service = config.parse(GOOD).services["web"]
    assert service.vip == IPv4Address("198.51.100.1")
    assert service.endpoints[0].capacity == 40
    assert service.shadows == model.ShadowSettings(hosts=("h2",), lead_time_s=0.5)
    assert service.forecast == model.ForecastSettings()
    assert service.probe == model.Probe()


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", None), (", limit: none", math.inf), (", limit: 80 flows/s", 80.0)],
    ids=["not given", "none", "a rate"],
)
def test_a_limit_is_a_rate_or_none_or_left_to_the_controller(text, limit):
    parsed = config.parse(GOOD.replace("40 flows/s", f"40 flows/s{text}"))
    assert parsed.services["web"].endpoints[0].limit == limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", 1000.0), ("icmp_limit: 0 errors/s", 0.0), ("icmp_limit: 2.5 errors/s", 2.5)],
    ids=["not given", "none are sent", "a rate"],
)
def test_icmp_errors_have_a_rate_of_which_zero_is_one(text, limit):
    assert config.parse(f"{text}\n{GOOD}").icmp_limit_per_s == limit


def test_affinity_is_none_unless_it_is_given():
    assert config.parse(GOOD).services["web"].affinity is model.Affinity.NONE
    given = config.parse(GOOD.replace("port: 80\n", "port: 80\n    affinity: source\n"))
    assert given.services["web"].affinity is model.Affinity.SOURCE


def test_the_models_own_defaults_stand_for_everything_that_is_not_given():
    parsed = config.parse(GOOD)
    assert parsed.sizes == model.Sizes()
    assert parsed.idle == model.Idle()
    assert parsed.state_dir == model.Config.__dataclass_fields__["state_dir"].default


BAD = {
    "an unknown key, with a near name": (
        ("vip: 198", "vipp: 198"),
        "services.web.vipp: '198.51.100.1': unknown key (did you mean 'vip'?); allowed: vip, port,",
    ),
    "a missing key": (("    port: 80\n", ""), "services.web.port: is missing"),
    "an unknown key in a map of named things": (("slots:", "slot:"), "hosts.h2.slot: 2: unknown key"),
    "a port as text": (("port: 80\n", "port: '80'\n"), "services.web.port: '80': a whole number is allowed"),
    "a port out of range": (
        ("port: 80\n", "port: 65536\n"),
        "services.web.port: 65536: at most 65535 is allowed",
    ),
    "a capacity without unit": (("40 flows/s", "40"), "endpoints.web-1.capacity: 40: a rate of new flows"),
    "a negative capacity": (
        ("40 flows/s", "-4 flows/s"),
        "capacity: '-4 flows/s': a rate of new flows from 0.001",
    ),
    "a capacity of zero": (
        ("40 flows/s", "0 flows/s"),
        "capacity: '0 flows/s': a rate of new flows from 0.001",
    ),
    "a rate of errors without unit": (
        ("instance: lab", "instance: lab\nicmp_limit: 4"),
        "icmp_limit: 4: a rate of ICMP errors with its unit is allowed",
    ),
    "a limit without unit": (
        ("40 flows/s", "40 flows/s, limit: 4"),
        'endpoints.web-1.limit: 4: "none" or a rate of new flows',
    ),
    "a limit that would part a client's flows": (
        (
            "port: 80\n    endpoints:\n      web-1: {",
            "port: 80\n    affinity: source\n    endpoints:\n      web-1: {limit: 4 flows/s, ",
        ),
        "services.web.endpoints.web-1.limit: 4 flows/s would part the flows of a client",
    ),
    "a duration without unit": (
        ("500ms", "5"),
        "shadows.lead_time: 5: a duration from 1ms to 24h with its unit",
    ),
    "a bool where a count belongs": (
        ("slots: 2", "slots: true"),
        "hosts.h2.slots: true: a whole number is allowed",
    ),
    "a host that is not there": (
        ("[h2]", "[h9]"),
        "services.web.shadows.hosts.0: 'h9' is not a key of hosts; allowed: h2",
    ),
    "a host that stands twice": (("[h2]", "[h2, h2]"), "services.web.shadows.hosts.1: 'h2' stands twice"),
    "no number": (
        ("lead_time: 500ms", "over_cost: .nan"),
        "services.web.shadows.over_cost: .nan: a number from 0.001 to 1000000 is allowed",
    ),
    "a number past all bounds, without YAML 1.1's point and sign": (
        ("lead_time: 500ms", "over_cost: 1e30"),
        "services.web.shadows.over_cost: 1e+30: a number from 0.001 to 1000000 is allowed",
    ),
    "a duration past all bounds": (
        ("lead_time: 500ms", "lead_time: 999999999h"),
        "services.web.shadows.lead_time: '999999999h': a duration from 1ms to 24h with its unit is allowed",
    ),
    "a number that YAML 1.1 takes for octal": (("port: 80\n", "port: 0100\n"), "services.web.port: '0100'"),
    "a number that YAML 1.1 takes for base 60": (("port: 80\n", "port: 1:30\n"), "services.web.port: '1:30'"),
    "a misspelt key": (
        ("lead_time: 500ms", "overcost: 6"),
        "services.web.shadows.overcost: 6: unknown key (did you mean 'over_cost'?)",
    ),
    "a misspelt key in the wrong section": (
        ("port: 80\n", "port: 80\n    overcost: 6\n"),
        "services.web.overcost: 6: unknown key (did you mean 'services.NAME.shadows.over_cost'?)",
    ),
    "a key that is no text": (("slots: 2", "1: 2"), "hosts.h2.1: 1: a text as key is allowed"),
    "variables that are no JSON": (
        ("slots: 2", "variables: {a: [.nan]}"),
        "hosts.h2.variables: {'a': [nan]}: texts, finite numbers,",
    ),
    "a VIP that is an endpoint too": (
        ("10.0.0.2", "198.51.100.1"),
        "endpoints.web-1.address: 198.51.100.1 is the vip of services.web",
    ),
    "a VIP that is another service's endpoint": (
        ("198.51.100.1\n", "10.0.0.3\n"),
        "services.api.endpoints.api-1.address: 10.0.0.3 is the vip of services.web",
    ),
    "one target in two services": (
        ("10.0.0.3", "10.0.0.2"),
        "services.api.endpoints.api-1: 10.0.0.2 tcp port 8080 is services.web.endpoints.web-1 already",
    ),
    "one VIP, protocol and port in two services": (
        ("198.51.100.2", "198.51.100.1"),
        "services.api.vip: 198.51.100.1 tcp port 80 is services.web already",
    ),
    "one name in two services": (("api-1", "web-1"), "services.api.endpoints.web-1: the name is that of"),
    "a key that stands twice": (
        ("instance: lab", "instance: a\ninstance: b"),
        "line 3: 'instance' stands twice",
    ),
    "a name that is none": (("web-1:", "Web_1:"), "services.web.endpoints.Web_1: 'Web_1': a-z, 0-9"),
    "an unknown mode": (
        ("instance: lab", "instance: lab\nmode: auto"),
        "mode: 'auto': 'forecast-only', 'advise'",
    ),
    "a ring that is no prime": (
        ("port: 80\n", "port: 80\n    ring_size: 1000\n"),
        "ring_size: 1000: a prime",
    ),
    "no YAML at all": (("web-1: {", "web-1: {{"), "line 12: not YAML"),
    "a VIP that is no text": (
        ("vip: 198.51.100.1\n", "vip: true\n"),
        "services.web.vip: true: an address as",
    ),
    "a text where a section belongs": (
        ("port: 80\n", "port: 80\n    probe: http\n"),
        "services.web.probe: 'http': a mapping is allowed",
    ),
    "a probe's path without a slash": (
        ("port: 80\n", "port: 80\n    probe: {path: healthz}\n"),
        "probe.path: 'healthz': a path that begins with /",
    ),
    "a duration too short": (
        ("instance: lab", "instance: lab\ntick: 10ms"),
        "tick: '10ms': a duration from 100ms to 1m with its unit",
    ),
    "no interfaces": (("[a, b]", "[]"), "interfaces: []: 1 or more in it"),
    "an address that is reserved": (("10.0.0.2", "240.0.0.1"), "address: '240.0.0.1': a unicast address"),
    "a duration of too many digits": (("500ms", "9" * 400 + "s"), "lead_time: '9999"),
    "an endpoint of another IP version than its VIP": (
        ("10.0.0.2", "2001:db8::2"),
        "services.web.endpoints.web-1.address: 2001:db8::2 is not of the IP version of its service's vip",
    ),
    "an IPv4-mapped address": (("10.0.0.2", "'::ffff:10.0.0.2'"), "'::ffff:10.0.0.2': a unicast address"),
    "an address of a link": (("10.0.0.2", "fe80::2"), "address: 'fe80::2': a unicast address"),
    "an address with a zone": (("10.0.0.2", "2001:db8::2%eth0"), "'2001:db8::2%eth0': a unicast address"),
    "a prefix that holds all of IPv4 too": (
        ("instance: lab", "instance: lab\ndirect: ['::/0']"),
        "direct.0: '::/0': it has a part in ::ffff:0:0/96, which stands for IPv4",
    ),
    "a prefix that is an IPv4 one in disguise": (
        ("instance: lab", "instance: lab\ndirect: ['::ffff:10.0.0.0/104']"),
        "direct.0: '::ffff:10.0.0.0/104': it has a part in ::ffff:0:0/96, which stands for IPv4",
    ),
    "requests of something else": (
        ("port: 80\n", "port: 80\n    requests: http2\n"),
        "services.web.requests: 'http2': 'off', 'http1'",
    ),
    "a sample that is no power of two": (
        ("port: 80\n", "port: 80\n    request_sample: 10\n"),
        "services.web.request_sample: 10: a power of two",
    ),
    "requests of a udp service": (
        ("port: 80\n", "port: 80\n    protocol: udp\n    probe: {kind: http}\n    requests: tls\n"),
        "services.web.requests: tls can't be told on a udp service; off is allowed",
    ),
    "usage without a kind": (
        ("port: 80\n", "port: 80\n    usage: {}\n"),
        "usage.kind: is missing and must be given; allowed: node-exporter, agent-check, cgroup",
    ),
    "usage of an unknown kind": (
        ("port: 80\n", "port: 80\n    usage: {kind: snmp}\n"),
        "services.web.usage.kind: 'snmp': 'node-exporter', 'agent-check', 'cgroup', 'docker' or "
        "'cadvisor' is allowed",
    ),
    "usage with an unknown key": (
        ("port: 80\n", "port: 80\n    usage: {kind: cgroup, paths: /a}\n"),
        "services.web.usage.paths: '/a': unknown key (did you mean 'path'?)",
    ),
    "usage with a key of another kind": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, port: 9100}\n"),
        "services.web.usage.port: 9100: node-exporter has no such key; allowed: url",
    ),
    "an agent without a port": (
        ("port: 80\n", "port: 80\n    usage: {kind: agent-check}\n"),
        "services.web.usage.port: is missing",
    ),
    "an agent at no address": (
        ("port: 80\n", "port: 80\n    usage: {kind: agent-check, port: 1, address: 'a b'}\n"),
        "services.web.usage.address: 'a b': an address, or the name of a host, is allowed",
    ),
    "an agent that is sent more than ASCII": (
        ("port: 80\n", "port: 80\n    usage: {kind: agent-check, port: 1, send: é}\n"),
        "services.web.usage.send: 'é': a text of ASCII is allowed, at most 255 characters",
    ),
    "a cgroup without a path": (
        ("port: 80\n", "port: 80\n    usage: {kind: cgroup}\n"),
        "services.web.usage.path: is missing",
    ),
    "a cgroup at a relative path": (
        ("port: 80\n", "port: 80\n    usage: {kind: cgroup, path: 'a/{name}'}\n"),
        "services.web.usage.path: 'a/{name}': an absolute path is allowed",
    ),
    "a cgroup named after what others call themselves": (
        ("port: 80\n", "port: 80\n    usage: {kind: cgroup, path: '/a/{host}'}\n"),
        "services.web.usage.path: '/a/{host}': {host} stands for nothing here; {name} is allowed",
    ),
    "a URL with an unknown placeholder": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, url: 'http://{adress}/'}\n"),
        "services.web.usage.url: 'http://{adress}/': {adress} stands for nothing here; {name}, {address}",
    ),
    "a URL with half a placeholder": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, url: 'http://{address/'}\n"),
        "services.web.usage.url: 'http://{address/': a brace without its other",
    ),
    "a URL with a user in it": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, url: 'http://a:b@{address}/'}\n"),
        "services.web.usage.url: 'http://a:b@{address}/': an http or https URL, without a user in it",
    ),
    "a URL of another scheme": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, url: 'file:///{address}'}\n"),
        "services.web.usage.url: 'file:///{address}': an http or https URL",
    ),
    "usage of hosts that are not given": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, url: 'http://{host}:9100/metrics'}\n"),
        "services.web.endpoints.web-1.host: is missing, and services.web.usage names {host}",
    ),
    "a usage timeout that is longer than the interval": (
        ("port: 80\n", "port: 80\n    usage: {kind: node-exporter, interval: 1s, timeout: 2s}\n"),
        "services.web.usage.timeout: 2s is longer than the interval (1s)",
    ),
    "a loopback address": (("10.0.0.2", "127.0.0.1"), "address: '127.0.0.1': a unicast address"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_configuration_is_refused_with_path_value_and_what_is_allowed(change, said):
    text = GOOD + SECOND
    assert text.replace(*change) != text
    with pytest.raises(config.ConfigError) as refused:
        config.parse(text.replace(*change, 1))
    assert any(said in problem for problem in refused.value.problems), refused.value.problems
    assert all("\n" not in problem for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("# {kind: cgroup}", None),
        ("{kind: node-exporter}", ("node-exporter", "http://{address}:9100/metrics", 0, "", 5.0, 1.0)),
        (
            "{kind: node-exporter, url: 'https://{host}/{name}?collect[]=cpu', interval: 2s, timeout: 500ms}",
            ("node-exporter", "https://{host}/{name}?collect[]=cpu", 0, "", 2.0, 0.5),
        ),
        (
            '{kind: agent-check, port: 8765, send: "web\\n"}',
            ("agent-check", "{address}", 8765, "web\n", 5.0, 1.0),
        ),
        (
            "{kind: agent-check, port: 1, address: '2001:db8::1'}",
            ("agent-check", "2001:db8::1", 1, "", 5.0, 1.0),
        ),
        ("{kind: cgroup, path: '/a/{name}'}", ("cgroup", "/a/{name}", 0, "", 5.0, 1.0)),
    ],
)
def test_usage_is_read_as_its_kind_has_it(given, taken):
    text = GOOD.replace("port: 80\n", f"port: 80\n    usage: {given}\n", 1).replace(
        "40 flows/s", "40 flows/s, host: h2"
    )
    usage = config.parse(text).services["web"].usage
    assert usage == (taken and model.UsageSource(model.UsageKind(taken[0]), *taken[1:]))


def keys(section=config._Root, above=()):
    """Of every value that a configuration may hold, as the keys that lead to it in GOOD."""
    names = {"services": "web", "hosts": "h2", "endpoints": "web-1"}
    for key, field in section.model_fields.items():
        path, kind = (*above, key), config_errors._plain(field.annotation)
        if key in names and get_origin(kind) is dict:
            path, kind = (*path, names[key]), config_errors._plain(get_args(kind)[-1])
        if config_errors._is_section(kind):
            yield from keys(kind, path)
        else:
            yield path


KINDS = {"url": "node-exporter", "path": "cgroup", "container": "docker"}
NONSENSE = (
    *(".nan", ".inf", "-1", "1e30", "9" * 30, "0.5", "true", "2024-01-01", "1:30"),
    *("''", "'é\u202e'", '"a\\0"', '"/\\n"', "x" * 300, "999999999h", "1e-9s", "0.000000001 flows/s"),
    *("[]", "[a, a]", "[[]]", "[.nan]", "{}", "{1: 2}", "{a: .inf}", "!!set {a}", "!!binary aGk="),
)
TAKEN = {
    "instance": {"2024-01-01", "999999999h", "1e-9s"},
    "direct": {"[]"},
    "budget_per_hour": {"0.5"},
    "hosts.h2.variables": {"{}"},
    "hosts.h2.region": {"2024-01-01", "999999999h", "1e-9s"},
    "hosts.h2.price_per_hour": {"0.5"},
    "hosts.h2.capacity.cpus": {"0.5"},
    "services.web.usage.container": {"2024-01-01", "999999999h", "1e-9s"},
    "services.web.shadows.regions": {"[]"},
    "services.web.shadows.cost_weight": {"0.5"},
    "services.web.endpoints.web-1.weight": {"0.5"},
    "services.web.probe.body": {
        "2024-01-01",
        "1:30",
        "x" * 300,
        "999999999h",
        "1e-9s",
        "0.000000001 flows/s",
    },
    "services.web.probe.host": {"2024-01-01", "999999999h", "1e-9s"},
    "services.web.probe.jitter": {"0.5"},
    "services.web.probe.max_ejected": {"0.5"},
    "services.web.usage.address": {"2024-01-01", "999999999h", "1e-9s"},
    "services.web.usage.send": {"''", "2024-01-01", "1:30", "999999999h", "1e-9s", '"/\\n"'}
    | {"0.000000001 flows/s"},
    "services.web.sync.variables": {"{}"},
    "services.web.shadows.target": {"2024-01-01", "999999999h", "1e-9s"},
    "services.web.shadows.hosts": {"[]"},
    "services.web.shadows.standing": {"true"},
    "services.web.shadows.over_cost": {"0.5"},
    "services.web.shadows.headroom": {"0.5"},
    "services.web.shadows.variables": {"{}"},
}
"""What of it has a meaning there."""


@pytest.mark.parametrize("path", list(keys()), ids=".".join)
def test_nonsense_is_refused_in_a_line_with_its_path_and_what_is_allowed(path):
    where, taken, root = ".".join(path), set(), yaml.safe_load(GOOD)
    here = root
    for key in path[:-1]:
        here = here.setdefault(key, {})
    if path[:1] in (("hosts",), ("host_usage",)) and path[-2].endswith("usage"):
        here |= {"kind": "docker"}
    elif path[-2:-1] == ("usage",):
        here |= {"kind": KINDS[path[-1]]} if path[-1] in KINDS else {"kind": "agent-check", "port": 1}
    if path[-2:-1] == ("sync",):
        root["services"]["web"]["access"] = "read"
        here |= {"driver": "redis", "max_lag": "1m"}
    if path[-2:-1] == ("probe",) and path[-1] in ("path", "status", "body", "host", "ca"):
        here["kind"] = "https"
    here[path[-1]] = "VALUE"
    text = yaml.safe_dump(root)
    for value in NONSENSE:
        try:
            config.parse(text.replace("VALUE", value))
            taken.add(value)
        except config.ConfigError as refused:
            for problem in refused.problems:
                assert problem.isprintable(), (value, problem)
                assert problem.startswith((f"{where}: ", f"{where}.", "line ")), (value, problem)
                assert "allowed" in problem or problem.startswith("line "), (value, problem)
    assert taken == TAKEN.get(where, set())


@pytest.mark.parametrize("text", ["", "- a\n", "5", "a: [1, 2", "\t", "? [a]\n: b\n"])
def test_files_that_are_no_configuration_are_refused_in_a_line(text):
    with pytest.raises(config.ConfigError):
        config.parse(text)


def test_a_file_that_is_missing_or_unreadable_says_so(tmp_path):
    with pytest.raises(config.ConfigError, match="can't be read: No such file"):
        config.load(tmp_path / "none.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(config.ConfigError, match="not UTF-8"):
        config.load(tmp_path / "binary.yml")
    os.mkfifo(tmp_path / "pipe.yml")
    for odd in (tmp_path / "pipe.yml", Path("/dev/zero")):
        with pytest.raises(config.ConfigError, match="is no regular file"):
            config.load(odd)
    (tmp_path / "large.yml").write_bytes(b"#" * (config_text.FILE_MOST + 1))
    with pytest.raises(config.ConfigError, match="is larger than 16 MiB"):
        config.load(tmp_path / "large.yml")


def test_addresses_of_hosts_are_direct_and_names_are_not():
    hosts = "h2: {variables: {address: 10.9.0.1, ansible_host: spare.example}}"
    text = GOOD.replace("h2: {slots: 2}", hosts)
    parsed = config.parse("direct: [192.0.2.0/24]" + text)
    assert [str(one) for one in parsed.direct] == ["192.0.2.0/24", "10.9.0.1/32"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [("off", "off"), ("'off'", "off"), ("http1", "http1"), ("tls", "tls")],
)
def test_requests_may_be_off_without_quotes(given, taken):
    text = GOOD.replace("port: 80\n", f"port: 80\n    requests: {given}\n    request_sample: 1\n", 1)
    service = config.parse(text).services["web"]
    assert (service.requests.value, service.request_sample) == (taken, 1)


def test_ipv6_is_as_good():
    six = GOOD.replace("198.51.100.1", "2001:db8:f::1").replace("10.0.0.2", "2001:db8::2")
    service = config.parse("direct: ['2001:db8:9::/48']" + six).services["web"]
    assert service.vip == IPv6Address("2001:db8:f::1")
    assert [one.address for one in service.endpoints] == [IPv6Address("2001:db8::2")]


def test_a_section_whose_keys_are_all_comments_is_as_one_that_is_absent():
    emptied = GOOD.replace("    port: 80\n", "    port: 80\n    probe:\n      # kind: http\n", 1)
    assert config.parse(emptied) == config.parse(GOOD)


def test_merge_keys_are_yaml_too():
    merged = GOOD.replace("web-1: {", "web-1: &one {") + "      web-2: {<<: *one, address: 10.0.0.9}\n"
    merged = merged.replace("    shadows: {hosts: [h2], lead_time: 500ms}\n", "")
    endpoints = config.parse(merged).services["web"].endpoints
    assert [(one.name, str(one.address), one.capacity) for one in endpoints] == [
        ("web-1", "10.0.0.2", 40),
        ("web-2", "10.0.0.9", 40),
    ]


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 5000, "nested too deep"),
        ("a: 1\nport: " + "9" * 6000, r"line 2: '9{40}\.\.\.' can't be read as int"),
        ("tick: !!bool x", "line 1: 'x' can't be read as bool"),
        ("tick: !!timestamp x", "line 1: 'x' can't be read as timestamp"),
        (BOMB, "line 7: more than 1048576 values with all aliases written out"),
        ("a: 1\nb: &b [*b]", "line 2: an alias holds itself"),
    ],
    ids=["nested deep", "a huge number", "no boolean", "no date", "aliases of aliases", "an alias in itself"],
)
def test_what_python_chokes_on_is_a_line_too(text, reason):
    with pytest.raises(config.ConfigError, match=reason):
        config.parse(text)


def test_what_looks_like_a_date_is_a_text():
    assert config.parse(GOOD.replace("instance: lab", "instance: 2024-01-01")).instance == "2024-01-01"


def probed(probe: str) -> model.Config:
    return config.parse(GOOD.replace("port: 80\n", f"port: 80\n    probe: {{{probe}}}\n", 1))


def test_a_probe_has_all_that_is_said_of_it_and_its_source_is_direct():
    known = probed(
        "kind: https, port: 8443, path: /h, status: '200-299, 404', body: 'ok|fine', host: web.example, "
        "ca: /etc/ca.pem, source: 10.0.2.250, interval: 2s, timeout: 1s, jitter: 0.2, rise: 3, fall: 4, "
        "max_ejected: 0.5"
    )
    assert known.services["web"].probe == model.Probe(
        kind=model.ProbeKind.HTTPS, port=8443, path="/h", status=((200, 299), (404, 404)), body="ok|fine",
        host="web.example", ca="/etc/ca.pem", source="10.0.2.250", interval_s=2.0, timeout_s=1.0, jitter=0.2,
        rise=3, fall=4, max_ejected=0.5,
    )  # fmt: skip
    assert ip_network("10.0.2.250") in known.direct
    assert probed("kind: http, status: 204").services["web"].probe.status == ((204, 204),)


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        ("path: /h", "probe.path: kind: tcp has no use for it; allowed with http or https"),
        ("kind: http, ca: /a.pem", "probe.ca: kind: http has no use for it; allowed with https"),
        ("source: '2001:db8::1'", "probe.source: 2001:db8::1 is not of the IP version of its service's vip"),
        ("kind: http, status: 399-200", "probe.status: '399-200': statuses from 100 to 599"),
        ("kind: http, body: '('", "probe.body: '(': a regular expression is allowed (missing )"),
    ],
)
def test_what_a_probe_has_no_use_for_is_refused(probe, why):
    with pytest.raises(config.ConfigError, match=re.escape(why)):
        probed(probe)
