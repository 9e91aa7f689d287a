# SPDX-License-Identifier: Apache-2.0
"""A playbook fails or hangs under load: the endpoint keeps its traffic; said, tried again, and mended."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.adapters import ansible_processes
from controlplane.adapters.ansible import shipped_playbooks
from tests.netns.steered import Steered, Traffic, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow

FAILING = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Ask the stars
      ansible.builtin.fail:
        msg: they are not right
"""
HANGING = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Wait for the stars
      ansible.builtin.command: sleep 613
"""
MISTAKEN = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Make the shadow
      ansible.builtin.include_role:
        name: "{{ order.target }}"
        tasks_from: provision
    - name: Hand back the VIP
      ansible.builtin.set_stats:
        data: {address: 203.0.113.10, port: 80}
"""


@pytest.fixture
def timeout() -> str:
    """Of one try. Only who waits for it can do with a short one."""
    return "30s"


@pytest.fixture
def site(tmp_path: Path, timeout: str) -> Iterator[Steered]:
    """The load of the tests is above its threshold, so that shadows are ordered; playbooks are a copy."""
    with steered(tmp_path) as made:
        books = tmp_path / "playbooks"
        shutil.copytree(shipped_playbooks(), books)
        root = made.configuration(playbooks=str(books))
        web = root["services"]["web"]
        web["endpoints"]["web-1"]["capacity"] = "8 flows/s"
        # One host: with another the next try would be made there.
        web["shadows"] |= {"timeout": timeout, "retry_after": "1s", "max_per_endpoint": 1, "hosts": ["host2"]}
        made.configure(root)
        yield made


def assert_said(site: Steered, reason: str) -> None:
    """In the status, the metrics, the decision log and the log."""
    eventually(lambda: site.shadow().get("state") == "failed", 20, site.said)
    assert reason in site.shadow()["reason"]
    eventually(
        lambda: any(
            line.startswith("penumbra_shadow_failed_attempts{") and reason in line
            for line in site.metrics().splitlines()
        ),
        10,
        site.metrics,
    )
    assert any(reason in said for said in site.decisions())
    assert reason in site.said()
    # With the run no process of it is left behind; those of a survey or of the next try end too.
    eventually(lambda: not runs(site), 20, site.said)


def runs(site: Steered) -> list[str]:
    return [label for label in ansible_processes.labels().values() if f"-{site.instance}-" in label]


def assert_kept(traffic: Traffic) -> None:
    """The live endpoint answered everything."""
    seen = traffic.now()
    assert_unharmed(seen)
    assert {one.served_by for one in seen} == {"web-1"}


@pytest.mark.parametrize(
    ("broken", "reason", "timeout"),
    [
        (FAILING, "task Ask the stars: they are not right", "30s"),
        (HANGING, "timed out after 6 s", "6s"),
        (MISTAKEN, "203.0.113.10:80: the vip of service web", "30s"),
    ],
    ids=["failing", "hanging", "mistaken about where it serves"],
)
def test_a_broken_playbook_costs_no_request_and_is_tried_again_until_it_is_mended(
    site: Steered, broken: str, reason: str, timeout: str
) -> None:
    book = site.folder / "playbooks/provision.yml"
    good = book.read_text()
    book.write_text(broken)
    site.start()
    traffic = site.traffic()
    assert_said(site, reason)
    assert any("demand" in said and "+1" in said for said in site.decisions()), "the load ordered it"
    eventually(lambda: site.shadow()["attempts"] >= 2, 30, site.said)
    assert any("again" in said for said in site.decisions())
    assert_kept(traffic)
    assert site.await_tick()["troubles"] == {}
    book.write_text(good)
    eventually(lambda: site.shadow()["state"] == "ready", 40, site.said)
    name = site.shadow()["name"]
    assert list(site.shadow_processes().values()) == [name]
    eventually(lambda: name in {one.served_by for one in traffic.now()[-20:]}, 20, site.said)
    assert_unharmed(traffic.stop())
    assert site.end(signal.SIGTERM) == 0


def test_negative_control_a_broken_playbook_that_also_harms_the_endpoint_is_seen(site: Steered) -> None:
    """The same assertions, where the endpoint does not keep its traffic."""
    assert site.live is not None
    harm = f"kill -STOP {site.live.pid}"
    book = site.folder / "playbooks/provision.yml"
    text = FAILING + "      when: harm.rc == 0\n"
    ask = f"    - name: Harm\n      ansible.builtin.command: {harm}\n      register: harm\n"
    book.write_text(text.replace("    - name: Ask", f"{ask}    - name: Ask"))
    site.start()
    traffic = site.traffic()
    assert_said(site, "task Ask the stars: they are not right")
    eventually(lambda: any(one.failed for one in traffic.now()), 20, "a failed request")
    with pytest.raises(AssertionError, match="failed"):
        assert_kept(traffic)
    site.live.send_signal(signal.SIGCONT)
