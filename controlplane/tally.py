# SPDX-License-Identifier: Apache-2.0
"""The data plane's counters as people and Prometheus read them: by interface, endpoint and service. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from controlplane.ports import Counters, InterfaceCounts, Sample

_OF_REQUESTS = ("requests", "answered", "aborted")
COUNTS = ("packets", "bytes", "return_packets", "return_bytes", "flows", *_OF_REQUESTS)
"""To the endpoints and back; flows are new ones that they were given; of requests see ``ports.Counters``."""


def by_service(counters: Counters, services: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Sums over the members that are there; service -> count -> number.

    :param services: member's name -> its service's.
    """
    there = [name for name in counters.rows if name in services]
    rows = np.array([counters.rows[name] for name in there], np.intp)
    names = sorted({services[name] for name in there})
    place = {name: at for at, name in enumerate(names)}
    of = np.array([place[services[name]] for name in there], np.intp)
    sums: dict[str, dict[str, int]] = {name: {} for name in names}
    for count in COUNTS:
        total = np.zeros(len(names), np.uint64)
        np.add.at(total, of, np.asarray(getattr(counters, count))[rows])
        for name, value in zip(names, total.tolist(), strict=True):
            sums[name][count] = value
    return sums


def samples(
    counters: Counters, services: Mapping[str, str], interfaces: Sequence[InterfaceCounts]
) -> Iterator[Sample]:
    """By interface and by endpoint; a service's are the sum of its endpoints' rates, as one that was removed
    takes its counts along.

    :param services: member's name -> its service's.
    """
    for one in interfaces:
        labels = {"interface": one.name}
        for reason, packets in one.reasons.items():
            yield Sample("packets_total", labels | {"reason": reason}, float(packets), counter=True)
        if one.redirects is not None:
            for result in ("sent", "lost", "refused"):
                value = float(getattr(one.redirects, result))
                yield Sample("redirected_frames_total", labels | {"result": result}, value, counter=True)
    for count in COUNTS:
        if count in _OF_REQUESTS and not counters.requests_read:
            continue
        numbers = np.asarray(getattr(counters, count))
        for name, row in counters.rows.items():
            if name in services:
                labels = {"service": services[name], "endpoint": name}
                yield Sample(f"endpoint_{count}_total", labels, float(numbers[row]), counter=True)
