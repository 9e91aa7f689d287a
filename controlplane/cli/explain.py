# SPDX-License-Identifier: Apache-2.0
"""``penumbra explain``: why there are so many members, and why each came or went."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from controlplane import model, requests
from controlplane.adapters.sqlite import DECISIONS_KEPT
from controlplane.cli import instance as instances
from controlplane.cli import output
from controlplane.cli.options import AsJson, InstanceName
from controlplane.cli.output import EXIT_USAGE, fail, say

_DEVIATIONS = {"rate": "rate_deviation", "times": "latency_deviation", "errors": "error_deviation"}
_ANY_SHADOW = re.compile(r"-s\d+\Z")


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    name: Annotated[
        str | None, typer.Argument(help="an endpoint, a service, or a shadow, one that is gone too")
    ] = None,
    decisions: Annotated[int, typer.Option(min=0, help="so many of the last ones, with their numbers")] = 10,
    instance: InstanceName = None,
    as_json: AsJson = False,
) -> None:
    """Why there are so many members: what is seen coming, what pays, and each decision with its numbers.

    Example: penumbra explain web-1
    """
    at = instances.find(instance)
    status = instances.told(at.name)
    groups = [
        {
            "service": service["name"],
            "horizon_s": service["lead_time_s"] + service["earlier_s"],
            "flow_life_s": service["flow_life_s"],
            "earlier_s": service["earlier_s"],
            "pool": service.get("pool"),
            "common_cause": service["common_cause"],
            "novelty": service.get("novelty"),
            **group,
        }
        for service in status.get("services", ())
        for group in service["groups"]
    ]
    about = [group for group in groups if name is None or _is_about(group, name)]
    of = {group["name"] for group in about if group["service"] == name} | {name}
    rows = [
        one
        for one in at.store().decisions(DECISIONS_KEPT)
        if name is None or any(known is not None and _names(one, known) for known in of)
    ]
    if name is not None and not about and not rows:
        known = ", ".join(group["name"] for group in groups) or "not known, no controller has decided yet"
        fail(
            f"{name}: no endpoint or service, and no shadow that was decided about; endpoints: {known}",
            EXIT_USAGE,
        )
    rows = rows[:decisions]
    if as_json:
        output.document({"groups": about, "decisions": [output.plain(one) for one in rows]})
        return
    for group in about:
        for line in _of_group(group):
            say(line)
        say("")
    _say_decisions(rows)


def _is_about(group: Mapping[str, Any], name: str) -> bool:
    return name in (group["name"], group["service"]) or any(
        shadow["name"] == name for shadow in group["shadows"]
    )


def _names(decision: model.Decision, name: str) -> bool:
    """Of the endpoint or shadow itself, or of one of the endpoint's shadows."""
    return decision.subject == name or _ANY_SHADOW.sub("", decision.subject) == name


def _of_group(group: Mapping[str, Any]) -> Iterator[str]:
    ready = [one for one in group["shadows"] if one["state"] == model.ShadowState.READY.value and one["up"]]
    serving = sum(one.get("lag") is None or one["lag"]["is_open"] for one in ready)
    yield (
        f"{group['name']} of service {group['service']}: {output.counted(group['wanted'], 'member')} wanted, "
        f"itself and {output.counted(serving, 'shadow')} serve"
    )
    if not group["pool"]:  # else it is decided for all of its service, below
        yield f"  decided    {group['reason']}"
    yield f"  demand     {_rate(group['demand'])} in the last tick, {_rate(group['level'])} smoothed"
    yield (
        f"  seen       {_rate(group['point'])} in {group['horizon_s']:.0f} s by the last readings, "
        f"{_rate(group['high'])} at most"
    )
    yield f"  foreseen   {_rate(group['p50'])} (p50), {_rate(group['p90'])} (p90) by all of the past"
    yield f"  capacity   {_capacity(group)}"
    yield from _of_pool(group["service"], group["pool"]) if group["pool"] else _of_size(group)
    if group["earlier_s"]:
        yield (
            f"  flows      live {group['flow_life_s']:.0f} s: little can be moved, so shadows are ordered "
            f"{group['earlier_s']:.0f} s earlier"
        )
    if group["drained"]:
        but = f"but {requests.SERVES_ON}"
        yield f"  drained    {but if group['serves_on'] else 'it gets no new flows'}"
    yield f"  weights    {group['spill']:.0%} of its new flows spill; {group['ring_weight']:g} in the ring"
    yield from _of_deviation(group)
    if group["novelty"]:
        yield f"  novelty    {_novelty(group['novelty'])}"
    if group.get("usage"):
        yield f"  uses       {_used(group['usage'])}"
    if group.get("ejection") and group["ejection"]["reason"]:
        yield f"  health     {group['ejection']['reason']}"
    if group.get("standby_lacks"):
        yield f"  standby    fewer than are to, for {group['standby_lacks']}"
    for shadow in group["shadows"]:
        up = "healthy" if shadow["up"] else "not healthy"
        at = f"{shadow['name']} on {shadow['host']}"
        yield f"  shadow     {at}: {shadow['state']}, {up}: {shadow['reason']}"
        if shadow.get("lag"):
            yield f"  data       {_lag(shadow['name'], shadow['lag'])}"
        if shadow.get("ejection") and shadow["ejection"]["reason"]:
            yield f"             {shadow['ejection']['reason']}"
        if shadow["placed"]:
            yield f"  placed     {shadow['name']}: {shadow['placed']}"


def _of_size(sized: Mapping[str, Any], of: str = "") -> Iterator[str]:
    why = sized["sized_reason"] or "nothing is known yet"
    pays = f"{output.counted(sized['sized'], 'member')}{of}"
    yield f"  pays       {pays}, {sized['standing']} of them standing by for more than the p90: {why}"


def _of_pool(service: str, pool: Mapping[str, Any]) -> Iterator[str]:
    wanted = output.counted(pool["wanted"], "member")
    yield f"  decided    {wanted} of {service}, sized together: {pool['reason'].removeprefix(f'{service}: ')}"
    yield f"  demand     {_rate(pool['demand'])} of {service}, {_rate(pool['high'])} at most"
    yield f"  capacity   {_rate(pool['capacity'])} of those that serve"
    yield from _of_size(pool, " of all (live ones serve anyway)")


def _used(usage: Mapping[str, Any]) -> str:
    """Of what it may use, and what its agent says."""
    told = [f"{name} {usage[name]:.0%}" for name in ("cpu", "memory", "network") if usage[name] is not None]
    asked = usage["asks"] or ("" if usage["weight"] is None else f"{usage['weight']:.0%} of its weight")
    wish = [f"its agent: {asked}"] if asked else []
    return f"{', '.join(told + wish) or 'not known'} ({usage['age_s']:.0f} s ago)"


def _lag(name: str, lag: Mapping[str, Any]) -> str:
    """How old its data may be, against what is agreed."""
    if lag["max_seconds"] is not None:
        old = "of unknown age" if lag["seconds"] is None else f"{lag['seconds']:.1f} s old at most"
        limit = f"{lag['max_seconds']:g} s"
    else:
        old = "of unknown age" if lag["bytes"] is None else f"{lag['bytes']} bytes behind"
        limit = f"{lag['max_bytes']} bytes"
    reason = f": {'' if lag['is_open'] else 'no new flows: '}{lag['reason']}" if lag["reason"] else ""
    return f"of {name} {old}, {limit} agreed (on_lag: {lag['on_lag']}){reason}"


def _of_deviation(group: Mapping[str, Any]) -> Iterator[str]:
    said = group["deviation_reason"] or "all is normal"
    if group["failing"]:
        said += "; nothing is learned of this time"
    scores = [f"{what} {group[key]:g}" for what, key in _DEVIATIONS.items()]
    yield f"  deviation  {', '.join(scores)} (0: normal, 0.5: remarkable, 1: most): {said}"
    if group.get("penalty"):
        lost = f"{group['penalty']:.0%} of its usual share of new flows, while it is slow or failing"
        yield f"  penalty    {lost}, and then less and less"
    if group["common_cause"]:
        yield f"  common     {group['common_cause']}: a common cause, no shadows for it"


def _novelty(novelty: Mapping[str, Any]) -> str:
    """Of its service."""
    now = "not known" if novelty["score"] is None else f"{novelty['score']:g}"
    last = "none was remarkable yet"
    if novelty["reason"]:
        last = f"{novelty['last_score']:g} {novelty['age_s']:.0f} s ago, in flows/s {novelty['reason']}"
    return f"{now} of its service's last step (as penumbra detect scores series, 0.5: remarkable): {last}"


def _capacity(group: Mapping[str, Any]) -> str:
    low, high = group["capacity_low"], group["capacity_high"]
    served = group["proven"]
    measured = "nothing was measured yet" if served is None else f"{_rate(served)} were served alone"
    if low is not None:
        measured = f"measured {_rate(low)} {'or more' if high is None else f'to {_rate(high)}'}"
    if group["capacity"] is None:
        state = "it is saturated" if group["saturated"] else "one shadow when it is saturated"
        return f"not known, {measured}: {state}"
    against = ", which contradicts what is given" if group["capacity_contradicted"] else ""
    return f"{_rate(group['capacity'])} each, {group['capacity_from']}; {measured}{against}"


def _rate(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}/s"


def _say_decisions(rows: Sequence[model.Decision]) -> None:
    for one in reversed(rows):
        say(f"{output.clock_time(one.at_unix_s)}  {one.action:10} {one.reason}")
        if one.inputs:
            numbers = (f"{key} {_number(value)}" for key, value in one.inputs.items())
            say(f"{'':20}{', '.join(numbers)}")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
