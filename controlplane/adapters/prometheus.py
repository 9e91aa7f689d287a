# SPDX-License-Identifier: Apache-2.0
"""Numbers for Prometheus, on loopback unless configured otherwise.

Names follow https://prometheus.io/docs/practices/naming/: ``penumbra_`` + what + unit (+ ``_total``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.ports import Sample

PREFIX = "penumbra_"


class PrometheusMetrics(Collector):
    """``ports.Metrics``: serves the last tick's samples at ``/metrics``. OSError if the port is taken."""

    def __init__(self, address: str, port: int) -> None:
        self._samples: Callable[[], Sequence[Sample]] = tuple
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, addr=address, registry=registry)

    def publish(self, values: Callable[[], Sequence[Sample]]) -> None:
        self._samples = values

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for sample in self._samples():
            family = families.get(sample.name)
            if family is None:
                kind = CounterMetricFamily if sample.counter else GaugeMetricFamily
                said = sample.name.replace("_", " ")
                family = families[sample.name] = kind(PREFIX + sample.name, said, labels=list(sample.labels))
            family.add_metric(list(sample.labels.values()), sample.value)
        return families.values()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
