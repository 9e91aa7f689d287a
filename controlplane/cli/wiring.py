# SPDX-License-Identifier: Apache-2.0
"""Puts adapters and the loop together. The only place, with its sister commands, that knows both."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TextIO

from controlplane import bypass, config, inventory, model, plan, weights
from controlplane.adapters import layout, libbpf, loader, pins, preflight, status_file, targets
from controlplane.adapters.ansible import AnsibleProvisioner, check_playbooks, shipped_playbooks
from controlplane.adapters.attach import Attachment
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.libbpf import XdpMode
from controlplane.adapters.patient_store import PatientStore
from controlplane.addresses import with_port
from controlplane.cli.instance import Instance, clock_path, forget, hold_controller_lock, remember
from controlplane.cli.instance import loaded as loaded_instances
from controlplane.cli.output import EXIT_USAGE, fail
from controlplane.loop import Controller
from controlplane.ports import DataplaneError
from controlplane.record import RECORD_BEGIN, Recorder

UAPI_HEADER = Path("/usr/include/linux/types.h")
"""One of the headers that bpf/ includes."""

_log = logging.getLogger("penumbra")


def bpf_dir() -> Path:
    """The folder of the C sources, installed or checked out."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "share/bpf"
    return installed if installed.is_dir() else package.parent / "bpf"


def against_machine(configured: model.Config) -> list[str]:
    """What the configuration names and this machine does not have, a line each."""
    here = [name for _, name in socket.if_nameindex()]
    problems = [
        f"interfaces.{at}: {name!r} is no interface of this network namespace; allowed: {', '.join(here)}"
        for at, name in enumerate(configured.interfaces)
        if name not in here
    ]
    folder = configured.playbooks or shipped_playbooks()
    problems += [f"playbooks: {problem}" for problem in check_playbooks(folder)]
    problems += targets.problems(configured, (folder, shipped_playbooks()))
    problems += preflight.unusable_probes(configured)
    problems += [
        f"services.{name}.sync.variables.password_file: {path}: can't be read here; a file is allowed"
        for name, service in configured.services.items()
        if service.sync is not None and (path := service.sync.variables.get("password_file")) is not None
        if not (os.access(str(path), os.R_OK) and os.path.isfile(str(path)))  # noqa: PTH113 - as below
    ]
    # Not Path.exists: where this user may not look, it raises, and that root is needed would remain unsaid.
    places = (configured.state_dir, *configured.state_dir.parents)
    above = next(path for path in places if os.path.exists(path))  # noqa: PTH110
    if not above.is_dir():
        problems.append(f"state_dir: {configured.state_dir}: {above} is no folder; a folder is allowed")
    return problems


def against_inventory(configured: model.Config) -> list[str]:
    """What is wrong with the inventory, or with what the configuration takes of it, a line each."""
    if configured.inventory is None:
        return []
    from controlplane.adapters.inventory import InventoryReadError, read

    try:
        found = read(configured.inventory)
    except InventoryReadError as error:
        return [f"inventory: {configured.inventory}: {error}"]
    return list(inventory.resolved(configured, found, {})[1])


def require_bpf(*, mounted: bool = True) -> None:
    """Root, BPF and bcc, or DataplaneError with the command that gets what is missing.

    :param mounted: False: a bpf file system is not needed yet.
    """
    pins.require_privileges(mounted=mounted)
    if importlib.util.find_spec("bcc") is None:
        raise DataplaneError(
            "bcc is missing: apt-get install python3-bpfcc, and use a Python that sees it "
            '(/usr/bin/python3 -m venv --system-site-packages); PyPI\'s "bcc" is an unrelated library'
        )
    if not UAPI_HEADER.exists():
        raise DataplaneError(f"{UAPI_HEADER} is missing: apt-get install linux-libc-dev")


def prepare() -> None:
    """What ``load`` and ``run`` need; mounts the bpf file system where nobody did."""
    if os.geteuid() == 0:
        pins.mount_bpf_filesystem()
    require_bpf()


def hints(configured: model.Config) -> list[str]:
    """What of this machine stands in the way of steered traffic, with the command that mends it."""
    found = (
        *preflight.problems(
            configured.interfaces, {service.vip.version for service in configured.services.values()}
        ),
        *preflight.misplaced(configured),
        *preflight.crowded(configured),
        *preflight.memory(configured.sizes, libbpf.possible_cpus()),
        *preflight.uncounted(),
    )
    return [*(f"{problem.what}: {problem.command}" for problem in found), *_bypassing(configured.instance)]


def _bypassing(instance: str) -> list[str]:
    """If it is loaded: whose replies bypass it, as far as that can be told without probes."""
    if instance not in loaded_instances():
        return []
    try:
        dataplane = MapDataplane.open(instance, MachineClock())
    except DataplaneError:
        return []  # of another version: load says so
    try:
        installed, counters = dataplane.installed(), dataplane.counters()
    finally:
        dataplane.close()
    judged = [
        name
        for name, member in installed.members.items()
        if installed.services[member.service].protocol is model.Protocol.TCP and not member.down
    ]
    return [one.sentence for one in bypass.silent(None, counters, judged)]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the maps take of the kernel's memory for one kind of thing."""

    kind: str
    count: int
    taken_bytes: int


def memory(configured: model.Config) -> list[Memory]:
    """By kind, with what each CPU that the kernel could have takes for counters, and what does not grow."""
    sizes, cpus = configured.sizes, libbpf.possible_cpus()
    counts = {**asdict(sizes), "cpus": cpus, "fixed": 1}
    taken = layout.memory_bytes(sizes, cpus)
    return [Memory(kind.replace("_", " "), counts[kind], size) for kind, size in taken.items()]


def load(configured: model.Config, path: Path) -> tuple[loader.Loaded, bool]:
    """Loads and attaches; a fresh instance steers to the configured endpoints at once.

    Returns also whether it steers to those now: one that was loaded before goes on with what it has.
    """
    loaded = loader.load(configured, bpf_dir())
    remember(configured, path)
    dataplane = MapDataplane.open(configured.instance, MachineClock())
    try:
        if loaded.fresh or not dataplane.installed().services:
            # Before any VIP is: one may be this host's own address, with other ports behind it.
            members = (one.address for service in configured.services.values() for one in service.endpoints)
            dataplane.set_direct({*configured.direct, *map(ip_network, members)})
            for step in plan.plan(model.Steering(), as_configured(configured)):
                dataplane.apply(step)
            dataplane.renew_hops()
        return loaded, _who(dataplane.installed()) == _who(as_configured(configured))
    finally:
        dataplane.close()


def _who(steering: model.Steering) -> tuple[set[object], set[object]]:
    """Its services and their live endpoints."""
    services = {(one.name, one.vip, one.port, one.protocol) for one in steering.services.values()}
    live = (one for one in steering.members.values() if one.role is model.Role.LIVE)
    return {*services}, {(one.name, one.service, one.address, one.port) for one in live}


def as_configured(configured: model.Config) -> model.Steering:
    """Every endpoint in its ring, nobody down, no shadows: what is known before the first probe."""
    services, members = {}, {}
    for service in configured.services.values():
        ring = weights.ring_weights({endpoint.name: endpoint for endpoint in service.endpoints})
        services[service.name] = model.VirtualService(
            service.name,
            service.vip,
            service.port,
            service.protocol,
            service.on_down,
            service.ring_size,
            ring,
            service.affinity,
            service.requests,
            service.request_sample,
        )
        for one in service.endpoints:
            members[one.name] = model.Member(one.name, service.name, one.address, one.port, model.Role.LIVE)
    return model.Steering(services, members)


def mode_line(attachment: Attachment) -> str:
    if attachment.mode == XdpMode.NATIVE:
        return f"{attachment.interface}: native"
    reason = attachment.reason or "attached so earlier"
    return (
        f"{attachment.interface}: {attachment.mode.name.upper()}, several times slower than native: {reason}"
    )


def run(configured: model.Config, path: Path, record: Path | None = None) -> None:
    """The controller, until SIGINT, SIGTERM or SIGHUP (its terminal is gone). Steering goes on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    instance = Instance(configured.instance, path.resolve(), configured.state_dir)
    lock = hold_controller_lock(configured.instance)
    closing: list[Callable[[], None]] = [lock.close]
    try:
        try:
            loaded, _ = load(configured, path)
        except DataplaneError:
            if configured.instance not in loaded_instances():
                forget(configured.instance)
            raise
        for attachment in loaded.attachments:
            _log.info("%s", mode_line(attachment))
        _run(configured, instance, record, closing)
    finally:
        for close in reversed(closing):
            close()


def _run(
    configured: model.Config,
    instance: Instance,
    record: Path | None,
    closing: list[Callable[[], None]],
) -> None:
    # Here, for only who runs needs them and aiohttp, which take a third of every other command's start.
    from controlplane.adapters.inventory import BackgroundInventory
    from controlplane.adapters.lag_source import BackgroundLagSource
    from controlplane.adapters.load_source import BackgroundLoadSource
    from controlplane.adapters.probes import NetworkProber
    from controlplane.adapters.prometheus import PrometheusMetrics

    clock = MachineClock(clock_path(configured.instance))
    try:
        metrics = PrometheusMetrics(configured.metrics_address, configured.metrics_port)
    except OSError as error:
        where = with_port(ip_address(configured.metrics_address), configured.metrics_port)
        part = "address" if error.errno == errno.EADDRNOTAVAIL else "port"
        why = f"{os.strerror(error.errno or 0)}; traffic goes on, take another {part}"
        fail(f"metrics.{part}: {where}: {why}")
    closing.append(metrics.close)
    dataplane = MapDataplane.open(configured.instance, clock)
    closing.append(dataplane.close)
    store = PatientStore(configured.state_dir, configured.instance, clock)
    closing.append(store.close)
    provisioner = AnsibleProvisioner(
        configured.instance,
        configured.hosts,
        clock,
        configured.playbooks or shipped_playbooks(),
        on_ended=clock.wake,
    )
    closing.append(provisioner.close)
    prober = NetworkProber(clock.wake)
    closing.append(prober.close)
    load_source = BackgroundLoadSource()
    closing.append(load_source.close)
    lag_source = BackgroundLagSource()
    closing.append(lag_source.close)
    inventories = BackgroundInventory()
    closing.append(inventories.close)

    def again() -> model.Config:
        fresh = reread(instance)
        if problems := unchangeable(configured, fresh):
            raise config.ConfigError(problems)
        return fresh

    def show(text: str) -> None:
        status_file.write(configured.instance, text)

    recorder = None
    if record is not None:
        lines = record_file(record)
        closing.append(lines.close)
        recorder = Recorder(lines.write, lambda: instance.config.read_text(encoding="utf-8"))
    controller = Controller(
        configured,
        dataplane,
        prober,
        provisioner,
        store,
        clock,
        metrics,
        show,
        again,
        recorder,
        load_source,
        lag_source,
        inventories,
    )

    ended_by: list[int] = []

    def end(number: int, _frame: object) -> None:
        ended_by.append(number)
        controller.stop()
        clock.wake()

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
        ending.append(signal.SIGHUP)
    for number in ending:
        signal.signal(number, end)
    controller.run()
    _log.info("%s: the controller ends, steering goes on", signal.Signals(ended_by[0]).name)
    for number in ending:  # it ends already: one more must not cut that short, nor change its exit status
        signal.signal(number, signal.SIG_IGN)


def record_file(path: Path) -> TextIO:
    """Lines are added to it, each written at once; nobody else may read it, as it holds the configuration."""
    try:
        if path.is_file() and not is_record(path):
            fail(
                f"--record {path}: it is there, and no record; a new file, or a record, is allowed",
                EXIT_USAGE,
            )
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        fail(f"--record {path}: {error.strerror}", EXIT_USAGE)
    added = os.fdopen(fd, "w", buffering=1, encoding="utf-8")
    if path.is_file() and _last_byte(path) not in (b"", b"\n"):
        added.write("\n")  # who wrote the last line did not come to its end
    return added


def is_record(path: Path) -> bool:
    """An empty one is, too."""
    with path.open("rb") as file:
        return RECORD_BEGIN.encode().startswith(file.read(len(RECORD_BEGIN)))


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read(1)


def reread(instance: Instance) -> model.Config:
    """The instance's configuration as its file has it now. Raises ValueError with all that is wrong."""
    configured = config.load(instance.config)
    if problems := against_machine(configured):
        raise config.ConfigError(f"{instance.config}: {problem}" for problem in problems)
    return configured


def unchangeable(running: model.Config, fresh: model.Config) -> list[str]:
    """What a reload can't change, a line for each that differs."""
    fixed = ("interfaces", "sizes", "idle", "playbooks", "state_dir", "metrics_address", "metrics_port")
    return [
        f"{name.replace('metrics_', 'metrics.')}: can't change by reload: end the controller, "
        f"penumbra load CONFIG, penumbra run CONFIG (steering goes on meanwhile)"
        for name in fixed
        if getattr(running, name) != getattr(fresh, name)
    ]
