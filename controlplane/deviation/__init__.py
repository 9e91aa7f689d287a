# SPDX-License-Identifier: Apache-2.0
"""Deviation from what is normal, value by value."""

from controlplane.deviation.detector import REMARKABLE, Detector, Score

__all__ = ["REMARKABLE", "Detector", "Score"]
