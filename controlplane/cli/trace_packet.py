# SPDX-License-Identifier: Apache-2.0
"""``penumbra trace-packet``: which endpoint a packet would get, and why; nothing is sent, nothing changes."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from controlplane.adapters import dry_run, ingress, pins
from controlplane.adapters.explanation import Explanation, explain
from controlplane.adapters.ingress import Ingress
from controlplane.addresses import Address
from controlplane.cli import instance as instances
from controlplane.cli import output, wiring
from controlplane.cli.options import AsJson, InstanceName
from controlplane.cli.output import EXIT_USAGE, fail, say, warn

PROTOCOLS = ("tcp", "udp", "icmp")
TCP_FLAGS = re.compile(r"[FSRPAUEC]{1,8}")
STDIN = "-"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the options describe: a frame, or the fields of one."""

    frame: bytes | None
    source: tuple[Address, int] | None
    destination: tuple[Address, int] | None
    protocol: str
    flags: str
    vlans: tuple[int, ...]


def trace_packet(
    source: Annotated[
        str | None, typer.Option("--from", metavar="ADDRESS:PORT", help="who sends it; ICMP has no port")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="ADDRESS:PORT", help="e.g. a VIP and its port")] = None,
    protocol: Annotated[str, typer.Option(help="tcp, udp, or icmp: an echo request")] = "tcp",
    flags: Annotated[str, typer.Option(help="of TCP, as letters: S opens, A goes on, F, R, ...")] = "S",
    vlan: Annotated[
        str | None, typer.Option(metavar="VID[,VID]", help="tags of the frame, outer first")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--in", metavar="INTERFACE", help="where it comes in; default: where its sender is"),
    ] = None,
    frame_hex: Annotated[
        str | None, typer.Option("--hex", metavar="DIGITS", help="the Ethernet frame instead; -: from stdin")
    ] = None,
    pcap: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a frame of a pcap or pcapng file instead")
    ] = None,
    number: Annotated[int, typer.Option("--packet", min=1, help="which one of the file")] = 1,
    instance: InstanceName = None,
    as_json: AsJson = False,
) -> None:
    """Say which endpoint a packet would get now, and why. Nothing is sent and nothing changes.

    The program itself is asked, built without its stores, on the instance's own maps: with the flows, limits
    and next hops of this moment. Run it in the network namespace where the instance is attached.

    Example: penumbra trace-packet --from 10.0.0.9:4242 --to 198.51.100.10:80
    """
    wanted = _wanted(source, to, protocol, flags, vlan, frame_hex, pcap, number)
    name = instances.only(instance)
    wiring.require_bpf()
    pins.check_folder(name)
    arrives, frame = _arrival(name, wanted, by)
    questioned = dry_run.question(name, wiring.bpf_dir())
    try:
        explained = explain(questioned.maps, questioned.run.ask(frame, arrives.ifindex))
    finally:
        questioned.close()
    if not questioned.same_version:
        warn("another version's program steers; this is what this version's would do (penumbra load CONFIG)")
    if as_json:
        output.document(
            {"interface": arrives.interface, "sent": frame.hex(), **dataclasses.asdict(explained)}
        )
    else:
        _print(arrives, frame, explained)


def _print(arrives: Ingress, frame: bytes, explained: Explanation) -> None:
    from controlplane.adapters import frames

    who = explained.endpoint or "nobody"
    if explained.endpoint and explained.reason.startswith("forward"):
        who = f"{explained.endpoint} ({explained.role}, {explained.address})"
    say(f"{explained.verdict} ({explained.reason}): {explained.why}; endpoint: {who}")
    say(f"in by {arrives.interface}: {frames.shown(frame)}")
    for step in explained.steps:
        say(f"  {step}")
    if explained.verdict in ("redirect", "pass"):
        out = bytes.fromhex(explained.frame)
        say(f"leaves as it came: {explained.verdict}" if out == frame else f"leaves as: {frames.shown(out)}")


def _wanted(
    source: str | None,
    to: str | None,
    protocol: str,
    flags: str,
    vlan: str | None,
    frame_hex: str | None,
    pcap: Path | None,
    number: int,
) -> _Wanted:
    options = (("--hex", frame_hex), ("--pcap", pcap), ("--to", to))
    given = [option for option, value in options if value is not None]
    if len(given) != 1:
        fail("say which packet: --from and --to, or --hex, or --pcap", EXIT_USAGE)
    if to is None:
        if source is not None or vlan is not None:
            fail(f"{given[0]} has the whole frame: no --from, no --vlan", EXIT_USAGE)
        return _Wanted(_frame(frame_hex, pcap, number), None, None, protocol, flags, ())
    if source is None:
        fail("--from is missing: ADDRESS:PORT of who sends it", EXIT_USAGE)
    if protocol not in PROTOCOLS:
        fail(f"--protocol {protocol!r}: allowed: {', '.join(PROTOCOLS)}", EXIT_USAGE)
    if not TCP_FLAGS.fullmatch(flags):
        fail(f"--flags {flags!r}: letters of FSRPAUEC are allowed", EXIT_USAGE)
    ends = _end("--from", source, protocol), _end("--to", to, protocol)
    if ends[0][0].version != ends[1][0].version:
        fail("--from and --to: both of IPv4, or both of IPv6", EXIT_USAGE)
    return _Wanted(None, *ends, protocol, flags, _vlans(vlan))


def _frame(frame_hex: str | None, pcap: Path | None, number: int) -> bytes:
    from controlplane.adapters import frames

    try:
        if pcap is not None:
            return frames.from_file(pcap, number)
        return frames.from_hex(sys.stdin.read() if frame_hex == STDIN else frame_hex or "")
    except ValueError as error:
        fail(f"--pcap {error}" if pcap is not None else f"--hex: {error}", EXIT_USAGE)
    except OSError as error:
        fail(f"--pcap {pcap}: {error.strerror}", EXIT_USAGE)


def _end(option: str, text: str, protocol: str) -> tuple[Address, int]:
    address, _, port = (text, "", "0") if protocol == "icmp" else text.rpartition(":")
    try:
        found = ip_address(address.removeprefix("[").removesuffix("]")), int(port)
        if not 0 <= found[1] <= 65535:
            raise ValueError(port)
    except ValueError:
        allowed = "ADDRESS" if protocol == "icmp" else "ADDRESS:PORT"
        fail(f"{option} {text!r}: {allowed} is allowed, IPv6 addresses in brackets", EXIT_USAGE)
    return found


def _vlans(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        vlans = tuple(map(int, text.split(",")))
        if len(vlans) > 2 or not all(0 < vlan < 4095 for vlan in vlans):
            raise ValueError(text)
    except ValueError:
        fail(f"--vlan {text!r}: one or two VIDs from 1 to 4094, the outer first", EXIT_USAGE)
    return vlans


def _arrival(instance: str, wanted: _Wanted, by: str | None) -> tuple[Ingress, bytes]:
    """Where the frame comes in, and the frame."""
    from controlplane.adapters import frames  # scapy takes half a second to import: other commands don't wait

    if by is not None:
        arrives = ingress.by_name(instance, by)
    else:
        source = wanted.source[0] if wanted.source else frames.source_of(wanted.frame or b"")
        if source is None:
            fail("the frame is of no IP packet: name where it comes in with --in", EXIT_USAGE)
        arrives = ingress.of_source(instance, source)
    if wanted.frame is not None or wanted.source is None or wanted.destination is None:
        return arrives, wanted.frame or b""
    vlans = wanted.vlans or arrives.vlans
    return arrives, frames.made(
        wanted.protocol, wanted.source, wanted.destination, flags=wanted.flags, vlans=vlans
    )


def register(app: typer.Typer) -> None:
    app.command("trace-packet")(trace_packet)
