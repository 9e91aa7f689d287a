# SPDX-License-Identifier: Apache-2.0
"""A reload that takes endpoints away, or brings some: what the ring moves then is no demand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from controlplane import model, requests
from controlplane.model import ShadowState
from tests.world import World, config


def endpoint(k: int, capacity: float = 100.0) -> model.Endpoint:
    """Weights are given, so each is sized on its own."""
    weight = 1.01 if k == 2 else 1.0
    return model.Endpoint(
        f"web-{k}", "web", IPv4Address(f"10.0.0.{k}"), 8080, weight, capacity=capacity, host="host-a"
    )


def reloaded(load: float, *after: model.Endpoint, eventful: bool = False, seed: int = 1) -> list[str]:
    """Of three endpoints: reasons of what is ordered then.

    :param eventful: web-1 has a shadow, and web-3 a penalty."""
    whole = config(headroom=0.0)
    web = replace(whole.services["web"], endpoints=(endpoint(1), endpoint(2), endpoint(3)))
    world = World(replace(whole, services={"web": web}), seed)
    world.ticks(60, load)
    if eventful:
        requests.request_shadow_add(world.store, "web-1")
        world.until(ShadowState.READY, load)
        world.dataplane.resets["web-3"] = 0.3
        world.ticks(60, load)
        assert world.controller.status().services[0].groups[2].penalty > 0.2
    orders = len(world.orders())
    world.config = replace(world.config, services={"web": replace(web, endpoints=after)})
    requests.request_reload(world.store)
    said = len(world.store.rows)
    world.ticks(20, load)
    assert len(world.dataplane.services["web"].ring) == len(after)
    ordered = [row.reason for row in world.store.rows[said:] if row.action == "add"]
    assert len(ordered) == len(world.orders()) - orders
    return ordered


@pytest.mark.parametrize("eventful", [False, True], ids=["calm", "eventful"])
@pytest.mark.parametrize(
    ("load", "after"),
    [
        (190.0, (endpoint(4), endpoint(2), endpoint(3))),
        (190.0, (endpoint(2, 90.0), endpoint(3), endpoint(4))),
        (135.0, (endpoint(2), endpoint(3))),
        (190.0, (endpoint(1), endpoint(2), endpoint(3), endpoint(4))),
    ],
    ids=["one replaced", "one replaced, another's capacity changed", "one removed", "one added"],
)
def test_nobody_who_has_room_gets_a_shadow(
    load: float, after: tuple[model.Endpoint, ...], eventful: bool
) -> None:
    assert reloaded(load, *after, eventful=eventful) == []


def test_negative_control_who_has_too_much_then_gets_one() -> None:
    assert len(reloaded(230.0, endpoint(2), endpoint(3))) == 2
