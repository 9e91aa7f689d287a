# SPDX-License-Identifier: Apache-2.0
"""Makes and removes shadows by Ansible playbooks, in background threads.

A playbook gets ``order`` (shadow, instance, service, protocol, target, parent, parent_host, specification;
sync, where the service has it), the service's ``variables`` and the host's; it hands back ``address`` and
``port`` with set_stats. So any two playbooks called provision.yml and deprovision.yml can take the place of
the shipped ones.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import yaml

from controlplane import model, ports
from controlplane.adapters import ansible_processes, targets
from controlplane.adapters.ansible_forks import ForkServer
from controlplane.adapters.ansible_inspect import INSPECT, Inspector
from controlplane.adapters.ansible_run import Outcome, PlaybookRun, literal, one_line

PROVISION = "provision.yml"
DEPROVISION = "deprovision.yml"
EXISTING = "existing.yml"
PLAN = "plan.yml"


@dataclass(slots=True)
class _Job:
    """A run that is under way or waits for a thread, and what follows it for the same shadow."""

    order: model.Order
    playbook: str
    run: PlaybookRun
    started_s: float
    following: _Job | None = None
    silent: bool = False
    """Its result is nobody's business: it was cancelled for what follows."""


@dataclass(slots=True)
class _Books:
    """What threads share, under one lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    jobs: dict[str, _Job] = field(default_factory=dict)
    ended: list[model.RunResult] = field(default_factory=list)
    closed: bool = False
    count: int = 0
    surveying: bool = False
    survey_run: PlaybookRun | None = None
    survey: model.Survey | None = None


def shipped_playbooks() -> Path:
    """The folder of the playbooks that come with this package, installed or checked out."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "share/playbooks"
    return installed if installed.is_dir() else package.parent / "playbooks"


def check_playbooks(folder: Path) -> list[str]:
    """What is wrong with a folder of playbooks, a sentence each; empty if it can be used."""
    if not folder.is_dir():
        return [f"{folder} is not a folder; it must hold {PROVISION} and {DEPROVISION}"]
    problems = []
    for name in (PROVISION, DEPROVISION):
        path = folder / name
        try:
            plays = yaml.safe_load(path.read_text())
        except OSError as error:
            problems.append(f"{path} can't be read: {error.strerror}; it must be a playbook")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problems.append(one_line(f"{path} is not YAML: {error}"))
        else:
            if not isinstance(plays, list) or not all(isinstance(play, dict) for play in plays) or not plays:
                problems.append(f"{path} is not a playbook: it must be a list of plays")
    return problems


class AnsibleProvisioner:
    """``ports.Provisioner`` by ansible-runner. Safe to call from one thread; runs are in others."""

    def __init__(
        self,
        instance: str,
        hosts: Mapping[str, model.Host],
        clock: ports.Clock,
        playbooks: Path | None = None,
        run_dir: Path = Path("/run/penumbra"),
        most_at_once: int = 4,
        on_ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Ends what a killed controller of this instance left running.

        :param on_ended: called, in the run's thread, when there is a result.
        """
        self._instance = instance
        self._hosts = hosts
        self._clock = clock
        self._playbooks = playbooks or shipped_playbooks()
        self._run_dir = run_dir
        self._runs = run_dir / instance / "runs"
        self._runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._on_ended = on_ended
        self._owner = ansible_processes.owner_label()
        self._books = _Books()
        self._pool = ThreadPoolExecutor(most_at_once, thread_name_prefix="ansible")
        ansible_processes.clear_stale(self._runs, instance)
        servers = run_dir / instance / "servers"
        ansible_processes.clear_stale(servers, instance)
        self._server = ForkServer(servers / f"{self._owner}-{uuid.uuid4().hex[:8]}", clock.now_s)
        self._inspector = Inspector(
            lambda target: self._playbook(INSPECT, target),
            _host_variables,
            self._server,
            self._execute,
            run_dir,
        )

    def know(self, hosts: Mapping[str, model.Host]) -> None:
        self._hosts = hosts

    def provision(self, order: model.Order) -> None:
        self._ask(order, PROVISION)

    def deprovision(self, order: model.Order) -> None:
        """A provisioning run of the same shadow is ended first; of that there will be no result."""
        self._ask(order, DEPROVISION)

    def results(self) -> Sequence[model.RunResult]:
        with self._books.lock:
            ended, self._books.ended = self._books.ended, []
        return ended

    def running(self) -> Collection[str]:
        with self._books.lock:
            return set(self._books.jobs)

    def trouble(self) -> str:
        return self._server.trouble

    def survey(self, places: Collection[tuple[str, str]]) -> None:
        with self._books.lock:
            if self._books.closed or self._books.surveying:
                return
            self._books.surveying = True
            self._pool.submit(self._survey, list(places))

    def surveyed(self) -> model.Survey | None:
        with self._books.lock:
            ended, self._books.survey = self._books.survey, None
        return ended

    def _survey(self, places: Collection[tuple[str, str]]) -> None:
        try:
            survey = self.existing(places)
        except Exception as error:  # the thread's end must not be the last survey's
            reason = one_line(f"{type(error).__name__}: {error}")
            survey = model.Survey((), dict.fromkeys((host for host, _ in places), reason))
        with self._books.lock:
            self._books.survey, self._books.surveying = survey, False

    def existing(self, places: Collection[tuple[str, str]], timeout_s: float = 60.0) -> model.Survey:
        """Asks (host, target) pairs for the shadows of this instance. Blocks: it is meant for the start.

        Found by labels, not by records: /proc for processes, the engine for containers.
        """
        found: list[model.Found] = []
        unasked: dict[str, str] = {}
        for target in sorted({target for _, target in places}):
            asked = {host for host, its in places if its == target}
            names = sorted(asked & self._hosts.keys())
            unasked |= dict.fromkeys(asked - self._hosts.keys(), "it is no configured host")
            if not names:
                continue
            hosts = {name: _host_variables(self._hosts[name]) for name in names}
            order = {"instance": self._instance, "target": target}
            variables = {"order": literal(order), "run_dir": str(self._run_dir)}
            playbook = self._playbook(EXISTING, target) or shipped_playbooks() / EXISTING
            run = PlaybookRun(playbook, hosts, variables, self._server)
            with self._books.lock:
                self._books.survey_run = run
                if self._books.closed:
                    run.cancel()
            outcome = self._execute(run, timeout_s)
            for name in names:
                rows = outcome.told(name, "shadows")
                if isinstance(rows, list):
                    found += [_found(row, name, target) for row in rows]
                else:
                    unasked[name] = outcome.failures.get(name) or outcome.reason or "it gave no answer"
        return model.Survey(found, unasked)

    def inspect(self, orders: Sequence[model.Order]) -> None:
        self._inspector.ask(orders)

    def inspected(self) -> Sequence[model.Inspection] | None:
        return self._inspector.ended()

    def plan(self, order: model.Order) -> model.Plan:
        """What ``provision`` would make of each field of the original. Blocks, and changes nothing."""
        if self._playbook(PLAN, order.target) is None:
            return model.Plan(reason=f"target {order.target} has no tasks/{PLAN}")
        outcome = self._execute(self._playbook_run(order, PLAN), order.timeout_s)
        rows = outcome.told(order.host.name, "plan")
        made_from = outcome.told(order.host.name, "made_from")
        if outcome.reason or not isinstance(rows, list):
            return model.Plan(reason=outcome.reason or f"{PLAN} told no plan")
        told = [{str(key): str(value) for key, value in row.items()} for row in rows]
        return model.Plan(told, str(made_from or ""))

    def close(self) -> None:
        self._inspector.close()
        with self._books.lock:
            self._books.closed = True
            if self._books.survey_run is not None:
                self._books.survey_run.cancel()
            for job in self._books.jobs.values():
                job.following = None
                job.run.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._server.close()
        with self._books.lock:
            self._books.jobs.clear()

    # ---- inside --------------------------------------------------------------------------

    def _ask(self, order: model.Order, playbook: str) -> None:
        job = _Job(order, playbook, self._playbook_run(order, playbook), self._clock.now_s())
        with self._books.lock:
            if self._books.closed:
                return
            present = self._books.jobs.get(order.shadow)
            if present is None:
                self._books.jobs[order.shadow] = job
                self._pool.submit(self._work, job)
                return
            last = present
            while last.following is not None:
                last = last.following
            if last.playbook == playbook:
                return
            if playbook == DEPROVISION:
                last.silent = True
                last.run.cancel()
            last.following = job

    def _work(self, job: _Job) -> None:
        outcome = Outcome(reason="cancelled")
        if not job.run.cancelled:
            outcome = self._execute(job.run, job.order.timeout_s)
        result = self._result(job, outcome)
        with self._books.lock:
            if not job.silent:
                self._books.ended.append(result)
            following = None if self._books.closed else job.following
            if following is None:
                del self._books.jobs[job.order.shadow]
            else:
                self._books.jobs[job.order.shadow] = following
                self._pool.submit(self._work, following)
        self._on_ended()

    def _result(self, job: _Job, outcome: Outcome) -> model.RunResult:
        address, port, reason = None, None, outcome.reason
        if not reason and job.playbook == PROVISION:
            try:
                address = ip_address(str(outcome.data["address"]))
                port = int(str(outcome.data["port"]))
            except (KeyError, ValueError):
                told = f"{PROVISION} handed back no address and port (set_stats): {dict(outcome.data)}"
                reason = one_line(told)
                outcome.refused = True
        return model.RunResult(
            shadow=job.order.shadow,
            state=model.RunState.FAILED if reason else model.RunState.DONE,
            address=address,
            port=port,
            id=str(outcome.data.get("id") or ""),
            reason=reason,
            refused=outcome.refused,
            started_s=job.started_s,
            ended_s=self._clock.now_s(),
        )

    def _playbook_run(self, order: model.Order, playbook: str) -> PlaybookRun:
        hosts = {order.host.name: _host_variables(order.host)}
        parent_host = self._hosts.get(order.parent.host or "")
        asked: dict[str, object] = {
            "shadow": order.shadow,
            "instance": order.instance,
            "service": order.service,
            "protocol": order.protocol.name.lower(),
            "target": order.target,
            "parent": {
                "name": order.parent.name,
                "address": str(order.parent.address),
                "port": order.parent.port,
                "host": order.parent.host or "",
            },
            "specification": order.specification,
        }
        if order.sync is not None:
            asked["sync"] = _sync(order.sync, order.parent)
        # Variables of hosts may be templates, here as in the inventory.
        its_host = {"parent_host": dict(parent_host.variables) if parent_host else {}}
        passed = {name: literal(value) for name, value in asked.items()} | its_host
        variables = {"run_dir": str(self._run_dir)} | dict(order.variables) | {"order": passed}
        path = self._playbook(PLAN, order.target) if playbook == PLAN else None
        return PlaybookRun(path or self._playbooks / playbook, hosts, variables, self._server)

    def _playbook(self, name: str, target: str) -> Path | None:
        """A user's own need not know how to list."""
        shipped = (shipped_playbooks(),) if name == EXISTING else ()
        return targets.playbook((self._playbooks, *shipped), name, target)

    def _execute(self, run: PlaybookRun, timeout_s: float) -> Outcome:
        return run.execute(self._runs, self._label(), timeout_s, self._clock.now_s)

    def _label(self) -> str:
        with self._books.lock:
            self._books.count += 1
            return f"{self._owner}-{self._instance}-{self._books.count}"


def _sync(sync: model.Sync, parent: model.Endpoint) -> dict[str, object]:
    address, port = sync.primary_of(parent)
    primary = {"address": str(address), "port": port}
    return {"driver": sync.driver.value, "primary": primary, "variables": dict(sync.variables)}


def _host_variables(host: model.Host) -> dict[str, object]:
    variables = dict(host.variables)
    if variables.get("ansible_connection") == "local":
        # Our own Python has what the modules need, and need not be searched for.
        variables.setdefault("ansible_python_interpreter", sys.executable or os.defpath)
    return variables


def _found(row: Mapping[str, object], host: str, target: str) -> model.Found:
    address, port = row.get("address"), row.get("port")
    return model.Found(
        shadow=str(row["shadow"]),
        host=host,
        target=target,
        service=str(row["service"]),
        parent=str(row["parent"]),
        id=str(row.get("id") or ""),
        created=str(row.get("created") or ""),
        address=ip_address(str(address)) if address else None,
        port=int(str(port)) if port else None,
    )
