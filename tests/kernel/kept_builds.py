# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest: what was compiled before the machine boots is not compiled again in it."""

from __future__ import annotations

from pathlib import Path

from controlplane.adapters import builds

builds.FOLDER = Path(__file__).resolve().parents[2] / "build" / "kernel" / "builds"
builds._KEPT = 1024
