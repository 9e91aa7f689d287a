# SPDX-License-Identifier: Apache-2.0
"""Penumbra's control plane: observe, forecast, decide, plan, apply, say."""
