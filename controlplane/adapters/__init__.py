# SPDX-License-Identifier: Apache-2.0
"""Adapters: one outside thing each, behind the ports of controlplane/ports.py."""
