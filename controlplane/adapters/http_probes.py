# SPDX-License-Identifier: Apache-2.0
"""Health checks by HTTP and HTTPS GET, in a thread with an event loop of its own.

Each check makes a connection of its own: making it is half the check.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

import aiohttp

from controlplane.adapters import no_answer
from controlplane.adapters.probe_beat import Beat, quick_s
from controlplane.adapters.tcp_probes import OURS, Answer, Target, cannot
from controlplane.addresses import with_port
from controlplane.model import Probe, ProbeKind

BODY_MOST = 65_536
"""Bytes of an answer that are searched."""


class _UnableError(Exception):
    """What keeps us from checking; it says nothing of the member."""


class _Checking:
    def __init__(self, target: Target, due_s: float) -> None:
        self.target = target
        self.beat = Beat(target[2], due_s)
        self.asked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class HttpProbes:
    """``answer`` and ``unable`` are called in its thread: with each answer, and whether it may flip its
    member's health; with a member that could not be checked, and why."""

    def __init__(self, answer: Callable[[Answer, bool], None], unable: Callable[[str, str], None]) -> None:
        self._answer, self._unable = answer, unable
        self._checked: dict[str, _Checking] = {}
        self._new = 0
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._contexts: dict[tuple[str, int], ssl.SSLContext] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-probes", daemon=True)
        self._thread.start()

    def watch(self, targets: Mapping[str, Target]) -> None:
        self._loop.call_soon_threadsafe(self._watch, dict(targets))

    def check(self, member: str) -> None:
        self._loop.call_soon_threadsafe(self._check, member)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _watch(self, targets: dict[str, Target]) -> None:
        for member, checking in list(self._checked.items()):
            if targets.get(member) != checking.target and checking.task is not None:
                checking.task.cancel()
                self._new -= checking.beat.is_new
                del self._checked[member]
        new = [member for member in targets if member not in self._checked]
        self._new += len(new)
        for at, member in enumerate(new):
            phase_s = at / len(new) * quick_s(targets[member][2], self._new)
            self._checked[member] = checking = _Checking(targets[member], self._loop.time() + phase_s)
            checking.task = self._loop.create_task(self._keep_checking(member, checking))

    def _check(self, member: str) -> None:
        checking = self._checked.get(member)
        if checking is not None and checking.beat.ask(self._loop.time()):
            checking.asked.set()

    async def _keep_checking(self, member: str, checking: _Checking) -> None:
        beat = checking.beat
        address, port, probe = checking.target
        while True:
            while (left_s := beat.due_s - self._loop.time()) > 0:
                checking.asked.clear()
                try:
                    async with asyncio.timeout(left_s):
                        await checking.asked.wait()
                except TimeoutError:
                    break
            began_s = self._loop.time()
            reason = ""
            try:
                async with asyncio.timeout(probe.timeout_s):
                    reason = await self._get(address, port, probe)
            except TimeoutError:
                reason = f"no answer within {probe.timeout_s:g} s"
            except _UnableError as error:
                beat.skip(self._loop.time())
                self._unable(member, str(error))
                continue
            except Exception as error:  # whatever went wrong, it was no healthy answer
                reason = _why(error)
            ended_s = self._loop.time()
            was_new = beat.is_new
            flips = beat.take(not reason, ended_s - began_s, ended_s, self._new)
            self._new -= was_new and not beat.is_new
            self._answer((member, not reason, ended_s, ended_s - began_s, reason), flips)

    async def _get(self, address: str, port: int, probe: Probe) -> str:
        """Why it is unhealthy, or nothing."""
        url = f"{probe.kind.value}://{with_port(ip_address(address), port)}{probe.path}"
        tls = self._context(probe.ca) if probe.kind is ProbeKind.HTTPS else True
        headers = {"Host": probe.host} if probe.host else None
        name = (probe.host or None) if probe.kind is ProbeKind.HTTPS else None
        try:
            async with self._session(probe.source).get(
                url, allow_redirects=False, headers=headers, ssl=tls, server_hostname=name
            ) as response:
                if not any(least <= response.status <= most for least, most in probe.status):
                    return f"GET {probe.path} answered {response.status}"
                return await _wrong_body(response, probe) if probe.body else ""
        except (aiohttp.ClientSSLError, ssl.SSLError):
            raise
        except OSError as error:
            if error.errno in OURS:
                raise _UnableError(cannot(probe, error.errno or 0)) from error
            raise

    def _session(self, source: str) -> aiohttp.ClientSession:
        if source not in self._sessions:
            own = (source, 0) if source else None
            self._sessions[source] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=0, local_addr=own),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "penumbra", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._sessions[source]

    def _context(self, ca: str) -> ssl.SSLContext:
        """Made again when the file was."""
        try:
            key = (ca, Path(ca).stat().st_mtime_ns if ca else 0)
            if key not in self._contexts:
                self._contexts = {one: made for one, made in self._contexts.items() if one[0] != ca}
                self._contexts[key] = ssl.create_default_context(cafile=ca or None)
        except OSError as error:  # an ssl.SSLError is one
            raise _UnableError(f"ca: {ca}: {error.strerror or error}") from error
        return self._contexts[key]

    async def _end(self) -> None:
        tasks = [checking.task for checking in self._checked.values() if checking.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()


async def _wrong_body(response: aiohttp.ClientResponse, probe: Probe) -> str:
    read = bytearray()
    while len(read) < BODY_MOST and (part := await response.content.read(BODY_MOST - len(read))):
        read += part
    if re.search(probe.body, read.decode("utf-8", "replace")):
        return ""
    return (
        f"GET {probe.path} answered {response.status} without {probe.body!r} in its first {len(read)} bytes"
    )


def _why(error: Exception) -> str:
    told: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        told = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        told = error.os_error
    if isinstance(told, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {told.verify_message}"[: no_answer.REASON_MOST]
    if isinstance(told, ssl.SSLError):
        return f"TLS: {(told.reason or str(told)).replace('_', ' ').lower()}"[: no_answer.REASON_MOST]
    return no_answer.why(error)
