# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told: names by its conventions, each with a text that says what it counts."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from controlplane import model
from controlplane.adapters.prometheus import PREFIX, families
from controlplane.metric_help import HELP
from controlplane.ports import Sample
from tests.world import World, config

PAGE = Path(__file__).resolve().parents[2] / "METRICS.md"
NO_BASE_UNIT = re.compile(r"_(ms|us|ns|min|minutes|hours|milliseconds|microseconds|kb|mb|percent)(_|$)")


class Published:
    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self):
        return families(self._samples)


def exposition(samples: list[Sample]) -> str:
    registry = CollectorRegistry()
    registry.register(Published(samples))
    return generate_latest(registry).decode()


def published() -> list[Sample]:
    """Of a world with a pool, a shadow, requests and usage."""
    world = World(config(endpoints=2, max_per_endpoint=1))
    world.ticks(25, 80.0)
    world.until(model.ShadowState.READY, 260.0)
    world.ticks(2, 260.0)
    return list(world.metrics.samples)


def test_each_says_more_than_its_name():
    for name, said in HELP.items():
        words = set(re.findall(r"[a-z]+", said.lower()))
        assert len(words - set(name.split("_"))) >= 4, name
        assert said.endswith(".")
        assert "\n" not in said


def test_names_have_base_units_and_counters_their_end():
    assert not [name for name in HELP if NO_BASE_UNIT.search(name) or not re.fullmatch("[a-z0-9_]+", name)]
    for sample in published():
        assert sample.name.endswith("_total") is sample.counter, sample.name


def test_all_that_is_published_has_its_text_and_type():
    samples = published()
    names = {sample.name for sample in samples}
    assert len(names) > 40
    assert names <= HELP.keys()
    text = exposition([*samples, Sample("endpoint_response_seconds", {"quantile": "0.5"}, 0.1)])
    for name in names:
        assert f"# HELP {PREFIX}{name} {HELP[name]}\n" in text
    assert f"# TYPE {PREFIX}steps_total counter\n" in text
    assert f"# TYPE {PREFIX}members_wanted gauge\n" in text
    assert f"# TYPE {PREFIX}endpoint_response_seconds summary\n" in text  # only these have quantiles


def test_the_page_says_the_same():
    rows = re.findall(r"^\| `penumbra_(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == HELP
    assert len(rows) == len(HELP)
