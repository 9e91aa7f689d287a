# SPDX-License-Identifier: Apache-2.0
"""Numbers for Prometheus, on loopback unless configured otherwise.

Names follow https://prometheus.io/docs/practices/naming/: ``penumbra_`` + what + unit (+ ``_total``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from controlplane.metric_help import HELP
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
        return families(self._samples())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def families(samples: Iterable[Sample]) -> Iterable[Metric]:
    found: dict[str, Metric] = {}
    for sample in samples:
        family = found.get(sample.name)
        if family is None:
            kind = "summary" if "quantile" in sample.labels else "counter" if sample.counter else "gauge"
            # Of a counter's name it adds the end itself, and it wants it without.
            name = PREFIX + sample.name.removesuffix("_total")
            family = found[sample.name] = Metric(name, HELP.get(sample.name, ""), kind)
        family.add_sample(PREFIX + sample.name, dict(sample.labels), sample.value)
    return found.values()
