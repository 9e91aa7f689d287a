# SPDX-License-Identifier: Apache-2.0
"""Health checks by TCP connect and HTTP GET, in a thread with an event loop of its own.

Each member is probed on its own beat, phases spread over the interval. Whether an answer makes a member
healthy is not decided here (``controlplane/health.py``).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

import aiohttp

from controlplane import model
from controlplane.adapters import no_answer
from controlplane.addresses import with_port

Target = tuple[str, int, model.Probe]

RESULTS_MOST = 1_000_000


class NetworkProber:
    """``ports.Prober``. ``on_change`` is called, in its thread, when as many answers in a row were alike as
    make a member healthy or unhealthy."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._results: deque[model.Health] = deque(maxlen=RESULTS_MOST)
        self._probing: dict[str, tuple[Target, asyncio.Task[None]]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="probes", daemon=True)
        self._thread.start()

    def watch(self, targets: Mapping[str, Target]) -> None:
        self._loop.call_soon_threadsafe(self._watch, dict(targets))

    def results(self) -> Sequence[model.Health]:
        found = []
        while self._results:
            found.append(self._results.popleft())
        return found

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _watch(self, targets: dict[str, Target]) -> None:
        for member, (target, task) in list(self._probing.items()):
            if targets.get(member) != target:
                task.cancel()
                del self._probing[member]
        new = [member for member in targets if member not in self._probing]
        for at, member in enumerate(new):
            phase = at / len(new)
            task = self._loop.create_task(self._keep_probing(member, targets[member], phase))
            self._probing[member] = (targets[member], task)

    async def _keep_probing(self, member: str, target: Target, phase: float) -> None:
        address, port, probe = target
        ask = self._get if probe.kind is model.ProbeKind.HTTP else self._connect
        due = self._loop.time() + phase * probe.interval_s
        before: bool | None = None
        alike = 0
        while True:
            await asyncio.sleep(due - self._loop.time())
            started = self._loop.time()
            reason = ""
            try:
                async with asyncio.timeout(probe.timeout_s):
                    reason = await ask(address, port, probe)
            except TimeoutError:
                reason = f"no answer within {probe.timeout_s:g} s"
            except Exception as error:  # whatever went wrong, it was no healthy answer
                reason = no_answer.why(error)
            ended = self._loop.time()
            self._results.append(model.Health(member, not reason, ended, ended - started, reason))
            alike = alike + 1 if before == (not reason) else 1
            before = not reason
            if alike == (probe.fall if reason else probe.rise):
                self._on_change()
            due = max(due + probe.interval_s, ended)

    async def _connect(self, address: str, port: int, _probe: model.Probe) -> str:
        _reader, writer = await asyncio.open_connection(address, port)
        writer.close()
        return ""

    async def _get(self, address: str, port: int, probe: model.Probe) -> str:
        """Why it is unhealthy, or nothing. A new connection each time: making it is half the check."""
        connector = aiohttp.TCPConnector(force_close=True, limit=1)
        url = f"http://{with_port(ip_address(address), port)}{probe.path}"
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get(url, allow_redirects=False, headers={"User-Agent": "penumbra"}) as response,
        ):
            return "" if 200 <= response.status < 400 else f"GET {probe.path} answered {response.status}"

    async def _end(self) -> None:
        tasks = [task for _, task in self._probing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
