# SPDX-License-Identifier: Apache-2.0
"""Reads originals by their targets' roles, in one thread of its own: never before a shadow that is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from controlplane import model
from controlplane.adapters.ansible_forks import ForkServer
from controlplane.adapters.ansible_run import Outcome, PlaybookRun, literal, one_line

INSPECT = "inspect.yml"


@dataclass(slots=True)
class _Books:
    """What the threads share, under one lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    run: PlaybookRun | None = None
    ended: Sequence[model.Inspection] | None = None
    closed: bool = False


class Inspector:
    def __init__(
        self,
        playbook: Callable[[str], Path | None],
        host_variables: Callable[[model.Host], Mapping[str, object]],
        server: ForkServer,
        execute: Callable[[PlaybookRun, float], Outcome],
        run_dir: Path,
    ) -> None:
        """:param playbook: the target's; None: it can't read originals.
        :param execute: a run, within so many seconds."""
        self._playbook, self._host_variables, self._execute = playbook, host_variables, execute
        self._server, self._run_dir = server, run_dir
        self._books = _Books()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inspect")

    def ask(self, orders: Sequence[model.Order]) -> None:
        first = orders[0]
        playbook = self._playbook(first.target)
        with self._books.lock:
            if self._books.closed or self._books.run is not None:
                return
            if playbook is None:
                self._books.ended = [_inspection(order) for order in orders]
                return
            self._books.run = PlaybookRun(
                playbook, self._hosts(orders), self._variables(orders), self._server
            )
            self._pool.submit(self._work, self._books.run, orders)

    def ended(self) -> Sequence[model.Inspection] | None:
        with self._books.lock:
            ended, self._books.ended = self._books.ended, None
        return ended

    def close(self) -> None:
        with self._books.lock:
            self._books.closed = True
            if self._books.run is not None:
                self._books.run.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, run: PlaybookRun, orders: Sequence[model.Order]) -> None:
        try:
            found = _found(orders, self._execute(run, orders[0].timeout_s))
        except Exception as error:  # the thread's end must not be the last inspection's
            reason = one_line(f"{type(error).__name__}: {error}")
            found = [_inspection(order, reason=reason) for order in orders]
        with self._books.lock:
            self._books.ended, self._books.run = found, None

    def _hosts(self, orders: Sequence[model.Order]) -> dict[str, Mapping[str, object]]:
        return {order.host.name: self._host_variables(order.host) for order in orders}

    def _variables(self, orders: Sequence[model.Order]) -> dict[str, object]:
        first = orders[0]
        parents: dict[str, list[dict[str, object]]] = {}
        for order in orders:
            parent = order.parent
            asked = {"name": parent.name, "address": str(parent.address), "port": parent.port}
            parents.setdefault(order.host.name, []).append(asked)
        asked_of_all = {
            "instance": first.instance,
            "service": first.service,
            "protocol": first.protocol.name.lower(),
            "target": first.target,
            "parents": parents,
        }
        return {"run_dir": str(self._run_dir)} | dict(first.variables) | {"order": literal(asked_of_all)}


def _inspection(order: model.Order, text: str = "", reason: str = "") -> model.Inspection:
    return model.Inspection(order.parent.name, order.target, order.host.name, text, reason)


def _found(orders: Sequence[model.Order], outcome: Outcome) -> list[model.Inspection]:
    found = []
    for order in orders:
        host, name = order.host.name, order.parent.name
        texts, unread = outcome.told(host, "specifications"), outcome.told(host, "unread")
        text = texts.get(name) if isinstance(texts, Mapping) else None
        why = unread.get(name) if isinstance(unread, Mapping) else None
        reason = str(why or outcome.failures.get(host) or outcome.reason or "its host gave no answer")
        given = _inspection(order, text) if isinstance(text, str) else _inspection(order, reason=reason)
        found.append(given)
    return found
