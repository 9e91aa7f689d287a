#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Shadows that are processes in a network namespace: a clone of the process that serves the parent's address.

The clone has the original's executable, arguments, environment, working directory, user, groups, umask
and resource limits. Its arguments are rewritten where they name the parent's address, port or name.
One that keeps data gets an empty directory of its own: two of them never write to the same files.
Its labels are environment variables, so that /proc alone tells every shadow of an instance.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import dataclasses
import fcntl
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils import penumbra_proc as proc
from ansible.module_utils.basic import AnsibleModule

CLONE_NEWNET = 0x40000000
POLL_S = 0.01
VERSION = 1
"""Of what is kept of a process."""
SECRET_LEAST = 4
"""Characters of a value that is looked for in messages: shorter ones stand in every other word."""

ARGUMENTS = {
    "state": {"choices": ["present", "absent", "listed", "inspected", "planned"], "default": "present"},
    "instance": {"required": True},
    "name": {},
    "service": {},
    "parent": {"type": "dict"},
    "parents": {"type": "list", "elements": "dict"},
    # JSON in base64: no value of a process is ever a template. Hidden, as what the user sets is.
    "specification": {"no_log": True},
    "protocol": {"choices": ["tcp", "udp"], "default": "tcp"},
    "netns": {},
    "address": {},
    "parent_netns": {},
    "command": {"type": "list", "elements": "str"},
    "environment": {"no_log": True},
    "drop_environment": {"type": "list", "elements": "str"},
    "address_options": {"type": "list", "elements": "str"},
    "port_options": {"type": "list", "elements": "str"},
    "name_options": {"type": "list", "elements": "str"},
    "port_range": {"type": "list", "elements": "int"},
    "start_timeout_s": {"type": "float"},
    "stop_timeout_s": {"type": "float"},
    "run_dir": {"required": True},
    "data_dir": {"required": True},
    "stateful": {"type": "bool", "default": False},
    "fresh_directory": {
        "type": "dict",
        "options": {
            "options": {"type": "list", "elements": "str", "default": []},
            "prepare": {"type": "list", "elements": "str", "default": []},
        },
    },
    "shared_paths": {"type": "list", "elements": "str", "default": []},
}


class RefusedError(Exception):
    """It can't be done; the message says why and what to do."""


class UnfitError(RefusedError):
    """Nor can it be on any other host."""


# ---- the rule by which a command becomes the shadow's -----------------------------------


def rewritten(
    argv: list[str], old: dict[str, str], new: dict[str, str], options: dict[str, list[str]]
) -> tuple[list[str], set[str]]:
    """The shadow's arguments, and which of name, address and port were found in the parent's.

    A value is replaced where it equals the parent's and follows an option listed for it (``--port 80``,
    ``--port=80``), and wherever ADDRESS:PORT of the parent stands inside an argument. Nothing else changes.
    """
    result: list[str] = []
    found: set[str] = set()
    pair = re.compile(rf"(?<![\d.]){re.escape(_host(old['address']))}:{old['port']}(?!\d)")
    for index, argument in enumerate(argv):
        before = argv[index - 1] if index else ""
        option, equals, value = argument.partition("=")
        for what, names in options.items():
            if before in names and argument == old[what]:
                argument = new[what]
                found.add(what)
            elif equals and option in names and value == old[what]:
                argument = f"{option}={new[what]}"
                found.add(what)
        argument, count = pair.subn(f"{_host(new['address'])}:{new['port']}", argument)
        if count:
            found |= {"address", "port"}
        result.append(argument)
    return result, found


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def filled(text: str, new: dict[str, str]) -> str:
    """``{name}``, ``{address}``, ``{port}`` and what else ``new`` has replaced; other braces stay."""
    return re.sub(r"\{([a-z]+)\}", lambda match: new.get(match[1], match[0]), text)


def directory_named(argv: list[str], options: list[str]) -> str | None:
    """The value that follows one of these options (``-D PATH``, ``--dir=PATH``); the last one counts."""
    found = None
    for before, argument in itertools.pairwise(argv):
        option, equals, value = argument.partition("=")
        if before in options:
            found = argument
        elif equals and option in options:
            found = value
    return found


def redirected(argv: list[str], options: list[str], directory: str) -> list[str]:
    """The arguments with another value after these options."""
    result = argv[:1]
    for before, argument in itertools.pairwise(argv):
        option, equals, _ = argument.partition("=")
        if before in options:
            argument = directory
        elif equals and option in options:
            argument = f"{option}={directory}"
        result.append(argument)
    return result


def first_port(instance: str, name: str, low: int, high: int) -> int:
    """Where the search for a free port starts: the same for the same shadow."""
    return low + zlib.crc32(f"{instance}/{name}".encode()) % (high - low + 1)


# ---- records ----------------------------------------------------------------------------


class Home:
    """What a shadow that keeps data has on disk: DATA_DIR/INSTANCE/NAME: record.json and its data/.

    The record is there before the data is, so that whatever a run was ended at is found by ``listed``.
    """

    def __init__(self, data_dir: str, instance: str, name: str) -> None:
        self._folder = Path(data_dir) / instance / name
        self.data = self._folder / "data"

    def make(self, record: dict, uid: int, gid: int) -> None:
        """Empty, whatever was left there."""
        self.remove()
        before = os.umask(0o022)  # its user must get there
        self._folder.mkdir(parents=True)
        os.umask(before)
        (self._folder / "record.json").write_text(json.dumps(record))
        self.data.mkdir(mode=0o700)
        os.chown(self.data, uid, gid)

    def remove(self) -> bool:
        there = self._folder.exists()
        if there:
            # The record goes last.
            shutil.rmtree(self.data, ignore_errors=True)
            shutil.rmtree(self._folder)
            with contextlib.suppress(OSError):  # others are there
                self._folder.parent.rmdir()
        return there

    @staticmethod
    def records(data_dir: str, instance: str) -> Iterator[dict]:
        for path in sorted((Path(data_dir) / instance).glob("*/record.json")):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_text())


class Records:
    """One file per shadow: RUN_DIR/INSTANCE/shadows/NAME.json, and its log beside it."""

    def __init__(self, run_dir: str, instance: str) -> None:
        self._root = Path(run_dir)
        self._folder = self._root / instance / "shadows"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held while a port is chosen and a process started or ended, over all instances of this machine."""
        with (self._root / "netns.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def read(self, name: str) -> dict | None:
        try:
            return json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, record: dict) -> None:
        temporary = self.path(record["shadow"]).with_suffix(".new")
        temporary.write_text(json.dumps(record))
        temporary.replace(self.path(record["shadow"]))

    def forget(self, name: str) -> bool:
        there = self.path(name).exists()
        self.path(name).unlink(missing_ok=True)
        self.log(name).unlink(missing_ok=True)
        return there

    def reserved(self, netns: str) -> set[int]:
        """Ports that other shadows of this namespace were given, whether they listen yet or not."""
        ports = set()
        for path in self._root.glob("*/shadows/*.json"):
            try:
                record = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if record.get("netns") == netns:
                ports.add(record.get("port"))
        return ports


# ---- present ----------------------------------------------------------------------------


def netns_path(name: str) -> Path:
    return Path("/run/netns") / name


def netns_inode(name: str) -> int:
    try:
        return netns_path(name).stat().st_ino
    except OSError:
        raise RefusedError(f"there is no network namespace {name} (ip netns list)") from None


def enter_netns(name: str | None) -> None:
    if not name:
        return
    netns_inode(name)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise RefusedError(
            f"can't enter network namespace {name}: {os.strerror(ctypes.get_errno())}; it needs root"
        )
    os.close(fd)


@dataclasses.dataclass(frozen=True)
class Original:
    """What is kept of a process, so that it can be started again when it is gone."""

    identity: proc.Identity
    limits: dict[str, list[int]]
    bound: list[str]
    """Addresses on which it serves the parent's port."""
    written: list[str]
    """Files that it can change in place."""

    def encoded(self) -> str:
        """JSON as ASCII: bytes of /proc that are no UTF-8 are lone surrogates, and come back as they were."""
        kept = {**dataclasses.asdict(self), "version": VERSION}
        return base64.b64encode(json.dumps(kept, sort_keys=True).encode()).decode()


def decoded(text: str) -> Original:
    try:
        kept = json.loads(base64.b64decode(text, validate=True))
        if kept.pop("version") != VERSION:
            raise ValueError
        return Original(**{**kept, "identity": proc.Identity(**kept["identity"])})
    except (ValueError, KeyError, TypeError):
        raise RefusedError(
            "the kept specification is of another version, or damaged: it is read anew"
        ) from None


def original_of(p: dict, identity: proc.Identity, parent: dict) -> Original:
    pid = identity.pid
    bound = sorted({address for address, _ in proc.listeners(pid, p["protocol"], int(parent["port"]))})
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    limits = {}
    for name in names:
        try:
            limits[name] = list(resource.prlimit(pid, getattr(resource, name)))
        except (OSError, ValueError):  # this kernel has no such limit
            continue
    return Original(identity, limits, bound, sorted(proc.written_files(pid)))


def read_original(p: dict) -> tuple[Original, str]:
    """The running one, so that what changed a second ago counts; else what was kept of it."""
    try:
        return original_of(p, find_original(p, p["parent"], p["parent_netns"]), p["parent"]), "live"
    except (RefusedError, OSError):
        if not p["specification"]:
            raise
    return decoded(p["specification"]), "kept"


def find_original(p: dict, parent: dict, netns: str | None) -> proc.Identity:
    """The process that serves the parent's address; RefusedError if none or several do."""
    spaces = proc.network_namespaces()
    where = ""
    if netns:
        inode = netns_inode(netns)
        spaces = {inode: spaces[inode]} if inode in spaces else {}
        where = f" in network namespace {netns}"
    found = proc.serving(spaces, p["protocol"], parent["address"], int(parent["port"]))
    subject = f"{parent['address']}:{parent['port']} ({parent['name']})"
    if not found:
        raise RefusedError(f"nothing serves {subject}{where} on this machine, so there is nothing to clone")
    if len(found) > 1:
        raise RefusedError(
            f"{len(found)} network namespaces serve {subject}: give its host the variable netns"
        )
    (serving,) = found.values()
    oldest = min(serving, key=lambda pid: proc.start_ticks(pid) or 0)
    original = proc.identity(oldest)
    if original.root != "/":
        raise RefusedError(
            f"{parent['name']} (process {oldest}) runs in {original.root}: use the target docker"
        )
    return original


def own_address(p: dict) -> str:
    v6 = ":" in p["parent"]["address"]
    addresses = [one for one in proc.local_addresses("self") if (":" in one) == v6]
    where = f"network namespace {p['netns']}" if p["netns"] else "the host"
    if p["address"]:
        if p["address"] not in addresses:
            raise RefusedError(
                f"address {p['address']} is not one of {where}: it has {', '.join(addresses) or 'none'}"
            )
        return p["address"]
    if len(addresses) != 1:
        raise RefusedError(
            f"{where} has {', '.join(addresses) or 'no address'}: give the host the variable address"
        )
    return addresses[0]


def own_port(p: dict, address: str, taken: set[int]) -> int:
    low, high = p["port_range"]
    first = first_port(p["instance"], p["name"], low, high)
    for port in [*range(first, high + 1), *range(low, first)]:
        if port not in taken and proc.is_free(p["protocol"], address, port):
            return port
    raise RefusedError(f"no port of {address} from {low} to {high} is free")


def clone_command(p: dict, kept: Original, new: dict[str, str]) -> list[str]:
    original = kept.identity
    if p["command"]:
        return [filled(argument, new) for argument in p["command"]]
    parent, fresh = p["parent"], p["fresh_directory"]
    old = {"name": parent["name"], "address": parent["address"], "port": str(parent["port"])}
    options = {what: p[f"{what}_options"] for what in ("name", "address", "port")}
    argv, found = rewritten(original.argv, old, new, options)
    missing = {"port"} - found
    if old["address"] in kept.bound and old["address"] != new["address"]:
        missing |= {"address"} - found
    if missing:
        raise UnfitError(
            f"the command of {parent['name']} (process {original.pid}) names its "
            f"{' and '.join(sorted(missing))} "
            "nowhere that the rule knows: add the option to address_options or port_options, or set command "
            "with {address} and {port}"
        )
    return redirected(argv, fresh["options"], new["directory"]) if fresh else argv


def original_directory(p: dict, original: proc.Identity) -> str | None:
    """Where the original keeps its data, if the clone gets a directory in its place."""
    fresh = p["fresh_directory"]
    if not fresh:
        return None
    named = directory_named(original.argv, fresh["options"])
    if named is None and fresh["options"] and not p["command"]:
        raise UnfitError(
            f"the command of {p['parent']['name']} (process {original.pid}) has none of "
            f"{', '.join(fresh['options'])} (fresh_directory.options): add the one that "
            "names its data directory, or set command with {directory}"
        )
    return named and str(Path(original.cwd) / named)


def check_shares_nothing(p: dict, kept: Original, directory: str | None) -> None:
    """Raises RefusedError if the clone would write to files of the original."""
    name = f"{p['parent']['name']} (process {kept.identity.pid})"
    if p["stateful"] and not p["fresh_directory"]:
        raise UnfitError(
            f"{name} has its data copied (sync), so the clone needs a directory of its own: "
            "set fresh_directory"
        )
    apart = [Path(one) for one in [*p["shared_paths"], *([directory] if directory else [])]]
    shared = sorted(
        path
        for path in kept.written
        if not any(
            Path(path).is_relative_to(one) or Path(path).is_relative_to(one.resolve()) for one in apart
        )
    )
    if shared:
        raise UnfitError(
            f"{name} has {shared[0]} open for writing"
            + (f", and {len(shared) - 1} files more" if shared[1:] else "")
            + ": two writers may destroy it. Set fresh_directory, "
            "or, if both may write there, name it or its folder in shared_paths"
        )


def prepare(p: dict, original: proc.Identity, new: dict[str, str], env: dict[str, str], who: dict) -> None:
    """Runs the command that fills the new directory, as the original's user. It ends with the run."""
    argv = [filled(argument, new) for argument in p["fresh_directory"]["prepare"]]
    if not argv:
        return
    run = {"PENUMBRA_RUN": os.environ["PENUMBRA_RUN"]} if "PENUMBRA_RUN" in os.environ else {}
    try:
        done = subprocess.run(
            argv,
            env=env | run,
            cwd=new["directory"],
            umask=original.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **who,
        )
    except OSError as error:
        raise RefusedError(f"can't prepare the directory of {p['name']} with {argv[0]}: {error}") from None
    if done.returncode:
        said = without(env, done.stdout.decode(errors="replace"))
        raise RefusedError(
            f"{argv[0]} ended with {done.returncode} preparing the directory of {p['name']}: {said}"
        )


def copy_limits(original: Original, module: AnsibleModule) -> None:
    """Takes on the original's resource limits, for the child to inherit."""
    for name, limits in original.limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limits[0], limits[1]))
        except (AttributeError, OSError, ValueError) as error:
            module.warn(f"{name} of process {original.identity.pid} is not copied: {error}")


def environment_of(p: dict, original: proc.Identity, new: dict[str, str]) -> dict[str, str]:
    """The original's, with the user's changes; without the labels."""
    drop = set(p["drop_environment"] or ())
    env = {k: v for k, v in original.environment.items() if not k.startswith("PENUMBRA_") and k not in drop}
    added = json.loads(base64.b64decode(p["environment"] or "e30="))
    return env | {key: filled(str(value), new) for key, value in added.items()}


def start(p: dict, records: Records, record: dict, module: AnsibleModule) -> int:
    kept, _ = read_original(p)
    original = kept.identity
    new = {"name": p["name"], "address": record["address"], "port": str(record["port"])}
    directory = original_directory(p, original)
    check_shares_nothing(p, kept, directory)
    home = Home(p["data_dir"], p["instance"], p["name"])
    if p["fresh_directory"]:
        new |= {"directory": str(home.data), "original": directory or ""}
    argv = clone_command(p, kept, new)
    env = environment_of(p, original, new)
    p["hidden"] = dict(env)
    who = {}
    if (os.geteuid(), os.getegid()) != (original.uid, original.gid):
        who = {"user": original.uid, "group": original.gid, "extra_groups": original.groups}
    if p["fresh_directory"]:
        home.make(record, original.uid, original.gid)
        prepare(p, original, new, env, who)
    env.update(
        {
            proc.INSTANCE_LABEL: p["instance"],
            proc.SHADOW_LABEL: p["name"],
            "PENUMBRA_SERVICE": p["service"],
            "PENUMBRA_PARENT": p["parent"]["name"],
            "PENUMBRA_ADDRESS": new["address"],
            "PENUMBRA_PORT": new["port"],
            "PENUMBRA_ID": p["id"],
            "PENUMBRA_CREATED": p["created"],
        }
    )
    # argv[0] may be relative, or a link that the program looks at: run the very file that runs.
    executable = argv[0] if p["command"] else original.executable
    inside = directory is not None and Path(original.cwd).is_relative_to(Path(directory).resolve())
    copy_limits(kept, module)
    with records.log(p["name"]).open("wb") as log:
        log_fd = log.fileno()
        os.fchmod(log_fd, 0o600)
        try:
            child = subprocess.Popen(
                argv,
                executable=executable,
                env=env,
                cwd=home.data if inside else original.cwd,
                umask=original.umask,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                start_new_session=True,
                **who,
            )
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise RefusedError(f"can't start {executable} as {p['name']}: {why}") from None
    return child.pid


def last_line(log: Path, environment: dict[str, str]) -> str:
    return without(environment, log.read_text(errors="replace") if log.exists() else "")


def without(environment: dict[str, str], text: str) -> str:
    """The last line of what a process said, without values of its environment."""
    lines = text.strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    hidden = (value for value in environment.values() if len(value) >= SECRET_LEAST)
    for value in sorted(hidden, key=len, reverse=True):
        said = said.replace(value, "***")
    return said[:300]


def await_listening(p: dict, records: Records, record: dict) -> None:
    """Returns when the shadow can be connected to; raises RefusedError when it ends or the time is up."""
    deadline = time.monotonic() + p["start_timeout_s"]
    while True:
        if any(a in (record["address"], "0.0.0.0", "::") for a, _ in listening(p, record)):  # noqa: S104
            return
        if not is_running(record):
            records.path(p["name"]).unlink(missing_ok=True)
            said = last_line(records.log(p["name"]), p.get("hidden", {}))
            raise RefusedError(f"{p['name']} ended right after its start; its last line: {said}")
        if time.monotonic() > deadline:
            said = last_line(records.log(p["name"]), p.get("hidden", {}))
            raise RefusedError(
                f"{p['name']} does not listen on {record['address']}:{record['port']} "
                f"{p['start_timeout_s']:g} s after its start; "
                f"its last line: {said}"
            )
        time.sleep(POLL_S)


def listening(p: dict, record: dict) -> list[tuple[str, int]]:
    return proc.listeners("self", p["protocol"], record["port"])


def running_record(p: dict, records: Records) -> dict | None:
    """The record of the shadow's process if it runs, made anew from its labels if it was lost."""
    record = records.read(p["name"])
    if record and is_running(record):
        return record
    for process in proc.labelled(p["instance"], p["name"]):
        return record_of(process, p["netns"] or "")
    return None


def is_running(record: dict) -> bool:
    """A process that had ended before its start could be read has none: it is nobody."""
    ticks = record.get("start_ticks")
    return ticks is not None and proc.start_ticks(record["pid"]) == ticks


def record_of(process: proc.Labelled, netns: str) -> dict:
    env = process.environment
    return {
        "instance": env[proc.INSTANCE_LABEL],
        "shadow": env[proc.SHADOW_LABEL],
        "service": env.get("PENUMBRA_SERVICE", ""),
        "parent": env.get("PENUMBRA_PARENT", ""),
        "netns": netns,
        "address": env.get("PENUMBRA_ADDRESS", ""),
        "port": int(env.get("PENUMBRA_PORT", "0")),
        "id": env.get("PENUMBRA_ID", ""),
        "created": env.get("PENUMBRA_CREATED", ""),
        "pid": process.pid,
        "start_ticks": process.start_ticks,
    }


def present(p: dict, records: Records, module: AnsibleModule) -> dict:
    enter_netns(p["netns"])
    with records.locked():
        record = running_record(p, records)
        changed = record is None
        if record is None:
            address = own_address(p)
            port = own_port(p, address, records.reserved(p["netns"] or ""))
            record = {
                "instance": p["instance"],
                "shadow": p["name"],
                "service": p["service"],
                "parent": p["parent"]["name"],
                "netns": p["netns"] or "",
                "address": address,
                "port": port,
                "id": p["id"],
                "created": p["created"],
            }
            pid = start(p, records, record, module)
            record |= {"pid": pid, "start_ticks": proc.start_ticks(pid)}
        records.write(record)
    await_listening(p, records, record)
    return {"changed": changed, "shadow": record}


# ---- planned and inspected --------------------------------------------------------------


def planned(p: dict, records: Records) -> dict:
    """What ``present`` would make of each field; nothing is changed. Environment only as same or not."""
    enter_netns(p["netns"])
    kept, source = read_original(p)
    original = kept.identity
    with records.locked():
        address = own_address(p)
        port = own_port(p, address, records.reserved(p["netns"] or ""))
    new = {"name": p["name"], "address": address, "port": str(port)}
    if p["fresh_directory"]:
        new |= {"directory": str(Home(p["data_dir"], p["instance"], p["name"]).data), "original": ""}
    at = f"{p['parent']['address']}:{p['parent']['port']}"
    rows = [row("serves at", "rewritten", at, f"{address}:{port}", "two can't share an address and port")]
    try:
        check_shares_nothing(p, kept, original_directory(p, original))
        argv = clone_command(p, kept, new)
    except RefusedError as error:
        rows.append(row("command", "refused", "***", "", str(error)))
    else:
        changed = [at for at, (was, now) in enumerate(zip(original.argv, argv, strict=False)) if was != now]
        same = argv == original.argv
        why = "as the variable command says" if p["command"] else f"arguments {changed} name what it is"
        rows.append(row("command", "same" if same else "rewritten", "***", "***", "" if same else why))
    env = environment_of(p, original, new)
    for name in sorted({*original.environment, *env}):
        before, now = original.environment.get(name), env.get(name)
        verdict = (
            "same" if before == now else "left out" if now is None else "rewritten" if before else "added"
        )
        rows.append(row(f"environment {name}", verdict, before and "***", now and "***", ""))
    for name in ("executable", "cwd", "uid", "gid", "groups", "umask"):
        value = str(getattr(original, name))
        rows.append(row(name, "same", value, value, ""))
    rows += [row(name, "same", str(limits), str(limits), "") for name, limits in kept.limits.items()]
    return {"changed": False, "plan": rows, "made_from": source}


def row(field: str, verdict: str, original: str | None, clone: str | None, reason: str) -> dict[str, str]:
    return {
        "field": field,
        "verdict": verdict,
        "original": original or "",
        "clone": clone or "",
        "reason": reason,
    }


def inspected(p: dict) -> dict:
    """Parent's name -> what is kept of it, or why it can't be read."""
    specifications, unread = {}, {}
    for parent in p["parents"]:
        try:
            kept = original_of(p, find_original(p, parent, p["netns"]), parent)
            specifications[parent["name"]] = kept.encoded()
        except (RefusedError, OSError) as error:
            unread[parent["name"]] = str(error)
    return {"changed": False, "specifications": specifications, "unread": unread}


# ---- absent and listed ------------------------------------------------------------------


def processes_of(p: dict, records: Records) -> set[tuple[int, int]]:
    """(pid, start) of all that belongs to the shadow."""
    found = {(process.pid, process.start_ticks) for process in proc.labelled(p["instance"], p["name"])}
    record = records.read(p["name"])
    if record and is_running(record):
        found.add((record["pid"], record["start_ticks"]))
    return found


def end(p: dict, records: Records) -> bool:
    """TERM, and KILL for what is left at the deadline. True if there was something to end."""
    processes = processes_of(p, records)
    there = bool(processes)
    deadline = time.monotonic() + p["stop_timeout_s"]
    send(processes, signal.SIGTERM)
    while processes := processes_of(p, records):
        if time.monotonic() > deadline:
            send(processes, signal.SIGKILL)
        time.sleep(POLL_S)
    return there


def send(processes: set[tuple[int, int]], number: signal.Signals) -> None:
    for pid, ticks in processes:
        if proc.start_ticks(pid) == ticks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def absent(p: dict, records: Records) -> dict:
    ended = end(p, records)
    with records.locked():
        forgotten = records.forget(p["name"])
        removed = Home(p["data_dir"], p["instance"], p["name"]).remove()
    return {"changed": ended or forgotten or removed}


def listed(p: dict) -> dict:
    """Shadows of the instance in this network namespace; those too of which only the directory is left."""
    netns = p["netns"] or ""
    inode = netns_inode(netns) if netns else Path("/proc/self/ns/net").stat().st_ino
    here = set(proc.network_namespaces().get(inode, []))
    shadows: dict[str, dict] = {}
    for process in proc.labelled(p["instance"]):
        if process.pid in here:
            shadows.setdefault(process.environment[proc.SHADOW_LABEL], record_of(process, netns))
    for record in Home.records(p["data_dir"], p["instance"]):
        if record["netns"] == netns:
            shadows.setdefault(record["shadow"], record)
    return {"changed": False, "shadows": list(shadows.values())}


def main() -> None:
    module = AnsibleModule(
        ARGUMENTS,
        required_if=[
            ("state", "present", ["name", "service", "parent", "port_range", "start_timeout_s"]),
            ("state", "planned", ["name", "parent", "port_range"]),
            ("state", "inspected", ["parents"]),
            ("state", "absent", ["name", "stop_timeout_s"]),
        ],
    )
    p = dict(module.params)  # those go into every result, and what is read of the original must not
    p["id"] = uuid.uuid4().hex[:12]
    p["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - Python 3.9
    try:
        records = Records(p["run_dir"], p["instance"])
        if p["state"] == "present":
            result = present(p, records, module)
        elif p["state"] == "absent":
            result = absent(p, records)
        elif p["state"] == "planned":
            result = planned(p, records)
        elif p["state"] == "inspected":
            result = inspected(p)
        else:
            result = listed(p)
    except RefusedError as refused:
        module.fail_json(msg=str(refused), refused=isinstance(refused, UnfitError))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
