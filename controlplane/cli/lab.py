# SPDX-License-Identifier: Apache-2.0
"""``penumbra lab``: a network of namespaces to try things in, with real traffic."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.adapters import attach, loader
from controlplane.adapters.libbpf import XdpMode
from controlplane.addresses import with_port
from controlplane.cli import instance as instances
from controlplane.cli import lab_send, output
from controlplane.cli.options import AsJson
from controlplane.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say
from controlplane.lab.configuration import Choices, LiveEndpoint, written
from controlplane.lab.lab import ENDINGS, Lab, topology_of
from controlplane.lab.network import LabError
from controlplane.lab.topology import AP, CLIENTS, Topology

app = typer.Typer(
    help="A lab of network namespaces: clients, an access point, hosts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command()(lab_send.send)

LabName = Annotated[str, typer.Option("--name", metavar="NAME", help="which lab")]

CONFIG = "penumbra.yml"
ENDPOINT = "web-1"
SERVICE_TIME_S = 0.1
CONCURRENCY = 8
FLOWS_PER_REQUEST = 0.53
"""Half of the generator's requests are a flow each, the others share flows of 17.5 requests on average."""


@app.command()
def up(
    name: LabName = "lab",
    ipv6: Annotated[bool, typer.Option("--ipv6", help="IPv6 addresses everywhere, instead of IPv4")] = False,
) -> None:
    """Make the lab with one endpoint on host1, and a configuration for it. It stays until down.

    Example: penumbra lab up
    """
    lab = _lab(name, 6 if ipv6 else 4)
    try:
        if lab.status().abandoned:
            _remove(lab)
        with lab:
            lab.endpoint("host1", name=ENDPOINT, service_time_s=SERVICE_TIME_S, concurrency=CONCURRENCY)
            config = _write_config(lab)
            for number in ENDINGS:  # from here on it is done: what stays is told, with exit status 0
                signal.signal(number, signal.SIG_IGN)
            lab.leave()
    except LabError as error:
        fail(str(error))
    inside = shlex.join(lab.argv(AP, [sys.argv[0]]))
    say(f"lab {name} is up: {', '.join(lab.topology.namespaces)}")
    say(f"steer:   {inside} run {config}")
    say(f"traffic: {sys.argv[0]} lab traffic --name {name} --trace mongo_burst --duration 90 --peak 150")
    say(f"end:     {sys.argv[0]} lab down --name {name}")


@app.command()
def down(name: LabName = "lab") -> None:
    """End what runs in the lab and remove it with its instance, also what a crashed one left.

    Done twice does no harm.

    Example: penumbra lab down
    """
    try:
        _remove(_lab(name))
    except LabError as error:
        fail(str(error))
    say(f"lab {name} is down")


@app.command()
def status(name: LabName = "lab", as_json: AsJson = False) -> None:
    """Whether the lab is up, and what runs in it.

    Example: penumbra lab status
    """
    found = _lab(name).status()
    if as_json:
        output.document(found)
        return
    state = "up" if found.up else "abandoned (penumbra lab down removes it)" if found.abandoned else "down"
    say(f"lab {name}: {state}, {len(found.namespaces)} namespaces, {len(found.pids)} processes")


@app.command()
def traffic(
    trace: Annotated[str, typer.Option(help="a CSV file of timestamp,value or the name of a shipped trace")],
    name: LabName = "lab",
    duration: Annotated[float, typer.Option(min=1, help="seconds into which the trace is squeezed")] = 90.0,
    peak: Annotated[float, typer.Option(min=0.1, help="requests/s at the trace's highest point")] = 150.0,
    seed: Annotated[int, typer.Option(min=0, help="of the random arrivals")] = 1,
) -> None:
    """Send HTTP requests from the lab's clients to the VIP, open-loop, along a trace; then a summary.

    Example: penumbra lab traffic --trace mongo_burst --duration 60 --peak 100
    """
    lab = _lab(name)
    if not lab.status().up:
        fail(f"lab {name} is not up: penumbra lab up --name {name}")
    topology = lab.topology
    argv = [sys.executable, "-m", "controlplane.lab.traffic", "--trace", trace, "--seed", str(seed)]
    argv += ["--target", with_port(topology.vip, topology.vip_port)]
    argv += ["--duration", str(duration), "--peak", str(peak)]
    sender = ["setpriv", "--pdeathsig", "TERM", *lab.argv(CLIENTS, argv)]
    # In a session of its own, so that a terminal's Ctrl-C reaches it by way of this process only.
    if code := _ended(subprocess.Popen(sender, start_new_session=True)):
        raise SystemExit(code if code == EXIT_USAGE else EXIT_FAILED)


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Its exit code. After Ctrl-C it sends nothing more, waits for answers under way, and sums up."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()


def _lab(name: str, ip_version: int | None = None) -> Lab:
    """:param ip_version: None: as the lab was made."""
    if os.geteuid() != 0:
        fail("a lab needs root (network namespaces): run it with sudo")
    try:
        topology = topology_of(name) if ip_version is None else Topology(name, ip_version=ip_version)
        return Lab(topology, stay=True)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)


def _remove(lab: Lab) -> None:
    """The lab, the instance that was loaded from its configuration, and others that steer at its interfaces,
    which go with it."""
    name = lab.topology.lab
    gone = {name} if instances.config_of(name) == lab.folder / CONFIG else set()
    inside = _steering_in(lab)
    lab.down()
    for one in sorted(gone | inside):
        config = instances.config_of(one)
        loader.unload(one)
        instances.forget(one)
        if one not in gone:
            say(f"instance {one}, loaded in it from {config or 'an unknown file'}, is unloaded")


def _steering_in(lab: Lab) -> set[str]:
    """Instances that are attached at the access point's interfaces."""
    try:
        with lab.entered(AP):
            return {
                name
                for name in instances.loaded()
                if any(one.mode is not XdpMode.NONE for one in attach.attached(name))
            }
    except (LabError, OSError):
        return set()  # there is no such namespace


def _write_config(lab: Lab) -> Path:
    capacity = CONCURRENCY / SERVICE_TIME_S * FLOWS_PER_REQUEST
    choices = Choices(
        endpoints=[LiveEndpoint("host1", ENDPOINT, capacity=round(capacity))],
        shadow_hosts={"host2": 2, "host3": 2},
        usage={"kind": "node-exporter", "url": "http://{address}:{port}/metrics", "interval": "2s"},
        shadows={"lead_time": "5s", "warm_up": "2s", "idle": "10s", "min_life": "10s", "drain": "35s"},
    )
    path = lab.folder / CONFIG
    path.write_text(written(lab.topology, choices, lab.folder / "state"), encoding="utf-8")
    return path
