# SPDX-License-Identifier: Apache-2.0
"""How few and how many members there may be: minReplicas and maxReplicas of Kubernetes, the sizes of AWS."""

from __future__ import annotations

from dataclasses import dataclass

MEMBERS_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Bounds:
    least: int = 1
    """Live endpoints, which are always there."""
    most: int = MEMBERS_MOST
    """Live endpoints and shadows."""

    def of(self, members: int) -> int:
        """As many as there may be."""
        return max(self.least, min(members, self.most))


UNBOUNDED = Bounds()
