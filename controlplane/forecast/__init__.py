# SPDX-License-Identifier: Apache-2.0
"""Demand over the lead time: a point and a high quantile, for all groups of a service at once."""

from controlplane.forecast.forecaster import Forecaster, Prediction

__all__ = ["Forecaster", "Prediction"]
