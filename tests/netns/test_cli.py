# SPDX-License-Identifier: Apache-2.0
"""Bad input and missing means: one line that says what is wrong and what to do, and nothing is changed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from controlplane.adapters import pins
from controlplane.cli import app
from controlplane.lab.topology import AP
from tests.netns.nobody import NOBODY
from tests.netns.steered import PENUMBRA, Steered, steered

Root = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All that can be typed, groups left out."""
    inside: dict[str, click.Command] | None = getattr(command, "commands", None)
    if inside is not None:
        for name, inner in inside.items():
            yield from commands(inner, (*path, name))
    else:
        yield path


ALL = sorted(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert f"Example: penumbra {' '.join(command)}" in shown.output


def test_the_commands_are_those_that_are_documented() -> None:
    maps = ["services", "endpoints", "shadows", "flows", "counters", "events"]
    wanted = {("maps", name) for name in maps} | {
        ("lab", name) for name in ("up", "down", "status", "traffic", "send")
    }
    wanted |= {("shadow", "add"), ("shadow", "remove")}
    plain = ["check", "load", "unload", "run", "reload", "status", "drain", "undrain", "freeze", "thaw"]
    plain += ["trace-packet", "capture"]
    assert wanted | {(name,) for name in plain} <= set(ALL)


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--no-such-option"])
    assert shown.exit_code == 2
    assert "--no-such-option" in shown.stderr


@pytest.mark.parametrize(
    "arguments", [("run",), ("nonsense",), ("drain",), ("shadow", "add"), ("maps", "flows", "--limit", "0")]
)
def test_missing_and_impossible_arguments_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, list(arguments)).exit_code == 2


# ---- bad configurations -----------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    """Nothing is ever loaded in it."""
    with steered(tmp_path_factory.mktemp("site")) as made:
        yield made


def web(root: Root) -> Root:
    return dict(root["services"]["web"])


def second_service(root: Root) -> None:
    root["services"]["api"] = web(root) | {"vip": "203.0.113.11"}
    root["services"]["api"]["endpoints"] = {"api-1": dict(root["services"]["web"]["endpoints"]["web-1"])}


def in_web(root: Root, key: str, value: object) -> None:
    root["services"]["web"][key] = value


def in_web_1(root: Root, key: str, value: object) -> None:
    root["services"]["web"]["endpoints"]["web-1"][key] = value


BAD: dict[str, tuple[Callable[[Root], object], Sequence[str]]] = {
    "an unknown key": (
        lambda root: in_web(root, "vpi", "203.0.113.9"),
        ("services.web.vpi", "203.0.113.9", "vip"),
    ),
    "a wrong type": (
        lambda root: in_web(root, "port", "eighty"),
        ("services.web.port", "'eighty'", "allowed"),
    ),
    "a VIP that is an endpoint": (
        lambda root: in_web(root, "vip", "10.201.1.2"),
        ("services.web", "10.201.1.2", "allowed"),
    ),
    "one target in two services": (
        second_service,
        ("services.", "10.201.1.2 tcp port 8080", "web-1", "may serve one"),
    ),
    "a capacity of nothing": (
        lambda root: in_web_1(root, "capacity", "0 flows/s"),
        ("services.web.endpoints.web-1.capacity", "'0 flows/s'", "from 0.001"),
    ),
    "a negative capacity": (
        lambda root: in_web_1(root, "capacity", "-3 flows/s"),
        ("services.web.endpoints.web-1.capacity", "'-3 flows/s'", "from 0.001"),
    ),
    "a missing interface": (
        lambda root: root["interfaces"].append("nosuch"),
        ("interfaces.4", "'nosuch'", "host1"),
    ),
    "a missing folder of playbooks": (
        lambda root: root.update(playbooks="/nonexistent/playbooks"),
        ("playbooks", "/nonexistent/playbooks", "provision.yml"),
    ),
    "an unknown host": (
        lambda root: in_web(root, "shadows", {"hosts": ["nowhere"]}),
        ("services.web.shadows.hosts.0", "'nowhere'", "host1"),
    ),
}


def assert_nothing_changed(site: Steered) -> None:
    assert not pins.folder(site.instance).exists()
    assert not list(pins.LOCKS.glob(f"{site.instance}.*"))
    assert not (pins.LOCKS / site.instance).exists()
    assert not site.state_dir.exists()
    links = json.loads(site.lab.run(AP, ["ip", "-j", "-d", "link", "show"]))
    assert not [one["ifname"] for one in links if "xdp" in one]


def refused(site: Steered, *commands: tuple[object, ...]) -> list[subprocess.CompletedProcess[str]]:
    """At the same time: most of it is Python's start."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda command: site.penumbra(*command), commands))


@pytest.mark.parametrize(("change", "parts"), BAD.values(), ids=BAD.keys())
def test_a_bad_configuration_is_a_line_with_path_value_and_what_is_allowed(
    site: Steered, change: Callable[[Root], object], parts: Sequence[str]
) -> None:
    root = site.configuration()
    change(root)
    site.configure(root)
    for done in refused(site, ("check", site.config), ("run", site.config)):
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"penumbra: {site.config}: ")
        assert all(part in line for part in parts), line
    assert_nothing_changed(site)


def test_every_fault_of_a_configuration_is_a_line(site: Steered) -> None:
    root = site.configuration(tick="soon")
    in_web_1(root, "capacity", "0 flows/s")
    in_web(root, "port", 0)
    site.configure(root)
    (done,) = refused(site, ("load", site.config))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert_nothing_changed(site)


def test_a_playbook_that_is_no_playbook_is_refused(site: Steered, tmp_path: Path) -> None:
    (tmp_path / "provision.yml").write_text("- hosts: [all\n")
    site.configure(site.configuration(playbooks=str(tmp_path)))
    (done,) = refused(site, ("load", site.config))
    assert done.returncode == 2
    broken, missing = done.stderr.splitlines()
    assert f"playbooks: {tmp_path}/provision.yml is not YAML" in broken
    assert f"playbooks: {tmp_path}/deprovision.yml can't be read: No such file" in missing
    assert_nothing_changed(site)


def test_a_file_that_can_not_be_read_is_a_line(site: Steered, tmp_path: Path) -> None:
    missing, folder, binary = refused(
        site,
        ("run", tmp_path / "none.yml"),
        ("load", tmp_path),
        ("check", sys.executable),
    )
    for done, why in ((missing, "No such file"), (folder, "Is a directory"), (binary, "not UTF-8")):
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr
    assert_nothing_changed(site)


def test_without_an_instance_commands_say_what_to_do(site: Steered) -> None:
    nobody = ("--instance", "nobody")
    for done in refused(site, ("status", *nobody), ("reload", *nobody), ("freeze", *nobody)):
        assert (done.returncode, done.stdout) == (1, "")
        assert "'nobody' is not loaded" in done.stderr
        assert "penumbra load CONFIG" in done.stderr
    assert_nothing_changed(site)


# ---- missing means ----------------------------------------------------------------------


@pytest.fixture
def public(site: Steered) -> Iterator[Path]:
    """A good configuration that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="penumbra-"))
    try:
        folder.chmod(0o755)
        site.configure(site.configuration())
        shutil.copy(site.config, folder)
        yield folder / site.config.name
    finally:
        shutil.rmtree(folder)


def missing_means(site: Steered, argv: Sequence[str], *, env: dict[str, str] | None = None) -> str:
    """The line that a command ends with, in the access point's namespace."""
    done = subprocess.run(
        site.lab.argv(AP, argv), capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert (done.returncode, done.stdout) == (1, ""), (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert_nothing_changed(site)
    return line


@pytest.mark.parametrize("command", ["check", "load", "run"])
def test_without_root_it_says_so_with_the_command(site: Steered, public: Path, command: str) -> None:
    line = missing_means(site, [*NOBODY, PENUMBRA, command, str(public)])
    assert "root" in line
    assert "sudo" in line


@pytest.mark.parametrize("command", [("status",), ("maps", "endpoints"), ("unload",)], ids=" ".join)
def test_commands_about_instances_without_root_say_so(site: Steered, command: tuple[str, ...]) -> None:
    line = missing_means(site, [*NOBODY, PENUMBRA, *command, "--instance", site.instance])
    assert "sudo" in line


def test_a_file_of_others_is_unreadable_and_wrong_usage(site: Steered, public: Path) -> None:
    public.chmod(0o600)
    argv = site.lab.argv(AP, [*NOBODY, PENUMBRA, "check", str(public)])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"penumbra: {public}: can't be read: Permission denied\n"


@pytest.mark.parametrize("command", ["check", "load", "run"])
def test_without_bpf_it_names_the_capabilities_and_the_way(site: Steered, public: Path, command: str) -> None:
    bounded = ["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin"]
    line = missing_means(site, [*bounded, PENUMBRA, command, str(public)])
    assert "CAP_BPF" in line
    assert "--cap-add BPF" in line


def test_check_looks_at_a_machine_without_a_bpf_file_system(site: Steered, public: Path) -> None:
    """For ``load`` mounts it."""
    argv = ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/bpf && exec "$@"', "sh", PENUMBRA, "check"]
    done = subprocess.run(
        site.lab.argv(AP, [*argv, str(public)]), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 service" in done.stdout


def test_without_bcc_it_names_the_package_and_warns_of_the_other_one(
    site: Steered, public: Path, tmp_path: Path
) -> None:
    """A Python that sees all of our packages and Debian's but one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    spec = importlib.util.find_spec("bcc")
    assert spec is not None
    assert spec.origin is not None
    debian, rest = Path(spec.origin).parents[1], tmp_path / "packages"
    rest.mkdir()
    for package in debian.iterdir():
        if package.name.partition("-")[0] != "bcc":
            (rest / package.name).symlink_to(package)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}:{rest}"}
    main = "from controlplane.cli import main; main()"
    argv = [str(tmp_path / "venv/bin/python"), "-c", main, "load", str(public)]
    line = missing_means(site, argv, env=env)
    assert "apt-get install python3-bpfcc" in line
    assert "PyPI" in line


def test_without_the_headers_of_packets_it_names_their_package(site: Steered, public: Path) -> None:
    hidden = 'mount -t tmpfs none /usr/include/linux && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", hidden, "sh", PENUMBRA, "load", str(public)]
    assert "apt-get install linux-libc-dev" in missing_means(site, argv)
