# SPDX-License-Identifier: Apache-2.0
"""What in the kernel's settings would lose steered packets: for ``penumbra check``. Changes nothing.

Read in the network namespace of the caller. Offloads of interfaces in other namespaces can't be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.adapters import netlink

_NATIVE_MTU_BYTES = 3498
"""A page less headroom and skb_shared_info: more wants XDP with fragments."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is in the way, and the command that mends it."""

    what: str
    command: str
    certain: bool = True
    """False: a thing to look at, for it can't be seen from here."""


def problems(interfaces: Sequence[str]) -> list[Problem]:
    """No certain one: nothing known is in the way of steering at these interfaces."""
    found: list[Problem] = []
    if _setting("ip_forward") == "0":
        found.append(
            Problem(
                "net.ipv4.ip_forward is 0: nothing without a known next hop is forwarded, returns among it",
                "sysctl -w net.ipv4.ip_forward=1",
            )
        )
    links = {link.name: link for link in netlink.routing().links.values()}
    everywhere = int(_setting("conf/all/rp_filter") or 0)
    for name in interfaces:
        link = links.get(name)
        if link is None:
            found.append(Problem(f"interface {name!r} is not in this network namespace", "ip link show"))
            continue
        if not link.up:
            found.append(Problem(f"interface {name} is down", f"ip link set {name} up"))
        if max(everywhere, int(_setting(f"conf/{name}/rp_filter") or 0)) == 1:
            key = "all" if everywhere == 1 else name
            found.append(
                Problem(
                    f"rp_filter is 1 at {name}: returns, whose source is the VIP, may be dropped",
                    f"sysctl -w net.ipv4.conf.{key}.rp_filter=2",
                )
            )
        if link.mtu > _NATIVE_MTU_BYTES:
            found.append(
                Problem(
                    f"MTU {link.mtu} at {name}: native mode takes at most about {_NATIVE_MTU_BYTES}",
                    f"ip link set {name} mtu 1500",
                )
            )
        found += _veth_problems(name, link.kind)
    return found


def _veth_problems(name: str, kind: str) -> list[Problem]:
    if kind != "veth":
        return []
    return [
        Problem(
            f"{name} is a veth: senders behind it must complete checksums, and receivers need GRO or XDP; "
            "both are set at its other end, which can't be seen from here",
            "there: ethtool -K DEV tx off gro on",
            certain=False,
        )
    ]


def _setting(path: str) -> str | None:
    """Of /proc/sys/net/ipv4; dots in interface names stay."""
    try:
        return (Path("/proc/sys/net/ipv4") / path).read_text().strip()
    except OSError:
        return None
