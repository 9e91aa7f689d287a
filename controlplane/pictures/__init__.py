# SPDX-License-Identifier: Apache-2.0
"""Pictures as SVG: of the demo, of simulated runs, of forecasts."""
