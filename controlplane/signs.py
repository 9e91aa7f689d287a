# SPDX-License-Identifier: Apache-2.0
"""What tells how groups and services are doing: how much is asked for, how long answers take, what fails.

A group's demand is counted before spill; times and errors are its live endpoint's own, as parts of what that
was given, so that they compare with what they were without spill. A service's are the sums of its groups'.

Of the counters (``bpf/structs.h``): ``rtt_count`` has each SYN-ACK, unless its SYN was sent again; past 2048
new flows in a tick of 268 ms a CPU times one in eight. So whoever answers forged SYNs is seen to answer,
though nothing completes, and who does not answer is seen not to. ``resets`` has each flow that the endpoint,
not the client, has reset, refused ones too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from controlplane.observe import COUNTED, Counted, mean

Floats = npt.NDArray[np.float64]

_TIMED_PER_S = 2048 / 0.268435456
"""New flows of a CPU: of further ones one in so many is timed (``HANDSHAKES_TIMED``, ``HANDSHAKE_SHARE``)."""
_TIMED_SHARE = 8.0
_FAILED_PART, _FAILED_LEAST = 0.5, 3.0
_UNEVEN = 2.0
"""New flows come so much more densely within a tick than in all of it."""


class Count(IntEnum):
    """Rows of what is counted; each against what it could have been: seconds, flows or requests."""

    RATE = 0
    OFFERED = 1
    RESETS = 2
    UNANSWERED = 3
    ABORTED = 4


class Time(IntEnum):
    """Rows of what is timed."""

    RTT = 0
    RESPONSE = 1


@dataclass(frozen=True, slots=True)
class Signs:
    """Of one tick; rows are groups, then services. NaN: not read, or nothing to tell by."""

    over_s: float
    counts: Floats
    """(Count, rows)"""
    of: Floats
    """(Count, rows) of how many, or seconds."""
    times: Floats
    """(Time, rows) logarithms of mean times in us: times are lognormal."""


def with_services(counted: Counted, service: npt.NDArray[np.intp], services: int) -> Counted:
    """Groups, and then the sums of services; those of whom not all groups were read are not known.

    :param service: (groups,) index of each one's."""

    def both(values: Floats) -> Floats:
        return np.concatenate([values, np.bincount(service, values, services)])

    return Counted(**{name: both(getattr(counted, name)) for name in COUNTED})


def read(counted: Counted, over_s: float, is_tcp: npt.NDArray[np.bool_], new_flows: float) -> Signs:
    """:param new_flows: per second that the program remembered, of all members."""
    answered = counted.rtt_count
    remembered = np.maximum(counted.flows - counted.unremembered, 0.0)
    share = timed_share(new_flows)
    unanswered = remembered - (answered if share == 1.0 else np.minimum(answered / share, remembered))
    unanswered[~is_tcp] = np.nan
    seconds = np.full(answered.shape, over_s)
    counts = [counted.completed, counted.offered, counted.resets, unanswered, counted.aborted]
    times = np.vstack(
        [mean(counted.rtt_sum_us, answered), mean(counted.response_sum_us, counted.response_count)]
    )
    return Signs(
        over_s,
        np.vstack(counts),
        np.vstack([seconds, seconds, counted.flows, remembered, counted.requests]),
        np.log(times, out=np.full(times.shape, np.nan), where=times > 0),
    )


def failing(counted: Counted, is_tcp: npt.NDArray[np.bool_], new_flows: float) -> npt.NDArray[np.bool_]:
    """(rows,) most new flows of this one tick got no answer, or were reset: reason enough to look, no more.

    :param new_flows: as of ``read``."""
    remembered = np.maximum(counted.flows - counted.unremembered, 0.0)
    unanswered = np.where(is_tcp, remembered - counted.rtt_count / timed_share(new_flows), 0.0)
    failed = np.fmax(unanswered, counted.resets)
    found: npt.NDArray[np.bool_] = failed >= np.maximum(_FAILED_PART * counted.flows, _FAILED_LEAST)
    return found


def timed_share(new_flows: float) -> float:
    """At least of the handshakes that is timed, if all came by one CPU.

    :param new_flows: per second."""
    dense = _UNEVEN * new_flows
    if not dense > _TIMED_PER_S:
        return 1.0
    return (_TIMED_PER_S + (dense - _TIMED_PER_S) / _TIMED_SHARE) / dense
