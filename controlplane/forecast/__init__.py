# SPDX-License-Identifier: Apache-2.0
"""Demand over the lead time: a point and a high quantile, for the groups of all services at once."""

from controlplane.forecast.forecaster import Forecaster, Prediction

__all__ = ["Forecaster", "Prediction"]
