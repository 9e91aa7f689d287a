# SPDX-License-Identifier: Apache-2.0
"""Which container a shadow is: from what an engine says of the original to what is created. Pure.

Everything goes over as it came but for what a rule changes, and each rule leaves a note, so that what is
created and what ``plan`` shows can't differ. Values are bytes to the rules: none is a template.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import zlib
from dataclasses import dataclass, field

SAME, REWRITTEN, ADDED, LEFT_OUT, REFUSED = "same", "rewritten", "added", "left out", "refused"
VERSION = 1

# Labels by which other tools own a container: a shadow is not theirs.
FOREIGN_LABELS = (
    "com.docker.compose.",
    "com.docker.stack.",
    "com.docker.swarm.",
    "io.kubernetes.",
    "penumbra.",
)
ANY_ADDRESS = ("", "0.0.0.0")  # noqa: S104
# What may hold a secret: a plan tells of it only whether it is the same.
CONFIDENTIAL = ("Config.Env.", "Config.Labels.", "Config.Cmd", "Config.Entrypoint", "Config.Healthcheck")
CONFIDENTIAL_HOST = ("HostConfig.LogConfig", "HostConfig.SecurityOpt", "HostConfig.StorageOpt")
SECRET_LEAST = 4
"""Characters of a value that is looked for in messages: shorter ones stand in every other word."""


class RefusedError(Exception):
    """It can't be done; the message says why and what to do."""


@dataclass(frozen=True)
class Wishes:
    """What the shadow is to be, beside what its original is."""

    container: str
    """Its container's name."""
    shadow: str
    parent_address: str
    parent_port: int
    protocol: str
    address: str | None = None
    """Where its host's published ports are reached."""
    remote: bool = False
    """On another engine than the original."""
    synced: bool = False
    """A sync driver fills its fresh mounts."""
    shared_mounts: tuple[str, ...] = ()
    fresh_mounts: tuple[str, ...] = ()
    rewrite: tuple[dict, ...] = ()
    environment_set: dict[str, str] = field(default_factory=dict)
    environment_drop: tuple[str, ...] = ()
    port_range: tuple[int, int] = (20000, 29999)
    first_port: int = 20000
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Clone:
    """What is created, and what became of each field of the original."""

    body: dict
    networks: dict[str, dict]
    """Network -> how it is joined; the first one is joined at creation."""
    fresh_volumes: dict[str, str]
    """Volume -> where it is mounted."""
    address: str | None
    """Where it serves; None: the engine says so once it runs."""
    port: int
    notes: dict[str, tuple[str, str]]
    """Field -> (what became of it, why)."""

    @property
    def refusals(self) -> list[str]:
        return [reason for verdict, reason in self.notes.values() if verdict == REFUSED]


# ---- specifications ---------------------------------------------------------------------


def specification(inspected: dict, digests: list[str]) -> dict:
    """What is kept of a container: all that a clone needs, and nothing that changes while it runs.

    :param digests: of its image, by which a registry may give it.
    """
    return {
        "version": VERSION,
        **{key: inspected[key] for key in ("Id", "Name", "Image", "Config", "HostConfig")},
        # Engines list them in another order each time.
        "Mounts": sorted(inspected["Mounts"], key=lambda mount: mount["Destination"]),
        "State": {"StartedAt": inspected["State"]["StartedAt"]},
        "NetworkSettings": {key: inspected["NetworkSettings"][key] for key in ("Ports", "Networks")},
        "RepoDigests": digests,
    }


def encoded(kept: dict) -> str:
    """Base64: nothing in it can be taken for a template, whatever a container's values are."""
    return base64.b64encode(json.dumps(kept, sort_keys=True).encode()).decode()


def decoded(text: str) -> dict:
    try:
        kept = json.loads(base64.b64decode(text, validate=True))
        if kept["version"] != VERSION:
            raise RefusedError(f"the kept specification has version {kept['version']}, not {VERSION}")
    except (ValueError, KeyError, TypeError):
        why = "the kept specification is damaged: it is read anew when the original is healthy"
        raise RefusedError(why) from None
    return kept


def texts_of(encoded_texts: str | None) -> dict:
    """The user's rewrite, environment_set and environment_drop."""
    return json.loads(base64.b64decode(encoded_texts)) if encoded_texts else {}


def confidences(original: dict, texts: dict) -> list[str]:
    """Values that no message may quote, longest first. A command's first word is none: it is a file."""
    config = original["Config"]
    values = [entry.partition("=")[2] for entry in config.get("Env") or []]
    values += (config.get("Labels") or {}).values()
    words = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    values += words[1:]
    values += ((config.get("Healthcheck") or {}).get("Test") or [])[1:]
    values += ((original["HostConfig"].get("LogConfig") or {}).get("Config") or {}).values()
    values += map(str, (texts.get("environment_set") or {}).values())
    values += [str(rule["replace"]) for rule in texts.get("rewrite") or []]
    return sorted({value for value in values if len(value) >= SECRET_LEAST}, key=len, reverse=True)


def redacted(text: str, original: dict, texts: dict) -> str:
    """A message without confidential values, as they are or quoted as JSON, Go and Python quote."""
    for value in confidences(original, texts):
        for quoted in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
            text = text.replace(quoted, "***")
    return text


# ---- where the original serves ----------------------------------------------------------


def published(original: dict, protocol: str, address: str, port: int) -> str | None:
    """The container's port (``80/tcp``) that is published as address:port of the host, if it is."""
    for container_port, bindings in (original["NetworkSettings"]["Ports"] or {}).items():
        for binding in bindings or []:
            on_address = binding["HostIp"] in (*ANY_ADDRESS, address)
            if container_port.endswith("/" + protocol) and on_address and int(binding["HostPort"]) == port:
                return container_port
    return None


def addressed(original: dict, address: str) -> str | None:
    """The network in which the original has this address, if there is one."""
    networks = original["NetworkSettings"]["Networks"]
    return next((name for name, network in networks.items() if network["IPAddress"] == address), None)


def first_port(instance: str, name: str, low: int, high: int) -> int:
    """Where the search for free host ports starts: the same for the same shadow."""
    return low + zlib.crc32(f"{instance}/{name}".encode()) % (high - low + 1)


# ---- the rules --------------------------------------------------------------------------


def clone_of(original: dict, wishes: Wishes) -> Clone:
    """The shadow of a container. What stands in the way is in ``Clone.refusals``."""
    notes: dict[str, tuple[str, str]] = {}
    config, host = copy.deepcopy(original["Config"]), copy.deepcopy(original["HostConfig"])
    notes["Name"] = REWRITTEN, "a name stands for one container"
    config["Image"] = original["Image"]
    notes["Config.Image"] = SAME, "by its id, whatever its name means by now"
    _host_name(original, config, wishes, notes)
    _labels(config, wishes, notes)
    _mounts(original, config, host, wishes, notes)
    fresh = _fresh_volumes(original, host, wishes, notes)
    _references(original, host, wishes, notes)
    bindings = _bindings(original, host, wishes, notes)
    address, port = _serves_at(original, bindings, wishes, notes)
    _texts(config, wishes, address, port, notes)
    if not config.get("Entrypoint"):
        # Else the image's would be taken, which the original may have been told to do without.
        config["Entrypoint"] = [""]
    networks = _networks(original, host, wishes, notes)
    return Clone({**config, "HostConfig": host}, networks, fresh, address, port, notes)


def _host_name(original: dict, config: dict, wishes: Wishes, notes: dict) -> None:
    """A name or an id as host name was the original's; a chosen one is configuration, and stays."""
    if original["Id"].startswith(config.get("Hostname") or "-"):
        config["Hostname"] = ""
        notes["Config.Hostname"] = REWRITTEN, "it was the container's id, and becomes the shadow's"
    elif config.get("Hostname") == original["Name"].lstrip("/"):
        config["Hostname"] = wishes.shadow
        notes["Config.Hostname"] = REWRITTEN, "it was the container's name, and becomes the shadow's"
    if config.pop("MacAddress", None):
        notes["Config.MacAddress"] = (
            LEFT_OUT,
            "two hosts of a network can't have the same: the engine chooses",
        )
    if host_file := original["HostConfig"].get("ContainerIDFile"):
        notes["HostConfig.ContainerIDFile"] = LEFT_OUT, f"{host_file} tells of the original"


def _labels(config: dict, wishes: Wishes, notes: dict) -> None:
    kept = {}
    for label, value in (config.get("Labels") or {}).items():
        if label.startswith(FOREIGN_LABELS):
            owner = label.rpartition(".")[0]
            notes[f"Config.Labels.{label}"] = LEFT_OUT, f"by it {owner} would take the shadow for its own"
        else:
            kept[label] = value
    config["Labels"] = kept | wishes.labels
    notes |= {f"Config.Labels.{label}": (ADDED, "tells whose shadow it is") for label in wishes.labels}


def _mounts(original: dict, config: dict, host: dict, wishes: Wishes, notes: dict) -> None:
    """What is written to has one writer, unless the user says otherwise or it gets a volume of its own."""
    host["ContainerIDFile"] = ""
    host["Mounts"] = [
        _named(one, original) for one in [*(host.get("Mounts") or []), *_unnamed(original, host, notes)]
    ]
    for mount in original["Mounts"]:
        to, key = mount["Destination"], f"Mounts.{mount['Destination']}"
        if not mount["RW"] or mount["Type"] == "tmpfs":
            continue
        what = f"the writable mount {to} ({mount['Type']} {mount.get('Name') or mount['Source']})"
        if to in wishes.shared_mounts and to in wishes.fresh_mounts:
            notes[key] = REFUSED, f"{to} is in shared_mounts and in fresh_mounts: one of the two is allowed"
        elif to in wishes.shared_mounts:
            notes[key] = SAME, "shared, as shared_mounts says"
        elif to not in wishes.fresh_mounts:
            notes[key] = (
                REFUSED,
                f"{_name(original)} has {what}: two writers may destroy its data; if they may share it, "
                f"add {to} to shared_mounts; if a sync driver copies it, to fresh_mounts",
            )
        elif not wishes.synced:
            notes[key] = (
                REFUSED,
                f"{_name(original)} has {what}: fresh_mounts would give the shadow an empty one, for no sync "
                "driver is configured that fills it",
            )
    if wishes.remote:
        _required_paths(host, notes)


def _unnamed(original: dict, host: dict, notes: dict) -> list[dict]:
    """Mounts that only the running original names: volumes the image asked for, and --volumes-from."""
    named = {_destination(bind) for bind in host.get("Binds") or []}
    named |= {mount["Target"] for mount in host.get("Mounts") or []}
    inherited = host.pop("VolumesFrom", None)
    if inherited:
        notes["HostConfig.VolumesFrom"] = REWRITTEN, f"the mounts of {', '.join(inherited)} themselves"
    return [
        {
            "Type": mount["Type"],
            "Source": mount.get("Name") if mount["Type"] == "volume" else mount["Source"],
            "Target": mount["Destination"],
            "ReadOnly": not mount["RW"],
        }
        for mount in original["Mounts"]
        if mount["Destination"] not in named and (mount["Type"] == "volume" or inherited)
    ]


def _destination(bind: str) -> str:
    return bind.split(":")[1] if ":" in bind else bind


def _named(mount: dict, original: dict) -> dict:
    """A volume that was asked for without a name is the original's one, not another new one."""
    if mount["Type"] == "volume" and not mount.get("Source"):
        names = (one.get("Name") for one in original["Mounts"] if one["Destination"] == mount["Target"])
        return {**mount, "Source": next(names, "")}
    return mount


def _required_paths(host: dict, notes: dict) -> None:
    """On another host the engine would make a missing folder, empty, where ``-v`` names it."""
    kept = []
    for bind in host.get("Binds") or []:
        source, to, *options = [*bind.split(":"), ""]
        flags = set(filter(None, options[0].split(",") if options else ()))
        propagation = flags & {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
        if not source.startswith("/") or flags - propagation - {"ro", "rw"}:
            kept.append(bind)
            continue
        mount = {"Type": "bind", "Source": source, "Target": to, "ReadOnly": "ro" in flags}
        if propagation:
            mount["BindOptions"] = {"Propagation": propagation.pop()}
        host["Mounts"].append(mount)
        notes.setdefault(f"Mounts.{to}", (SAME, f"{source} must be there on the shadow's host"))
    host["Binds"] = kept


def _fresh_volumes(original: dict, host: dict, wishes: Wishes, notes: dict) -> dict[str, str]:
    there = {mount["Destination"]: mount for mount in original["Mounts"] if mount["RW"]}
    fresh: dict[str, str] = {}
    for at, to in enumerate(sorted(set(wishes.fresh_mounts) & there.keys())):
        if f"Mounts.{to}" in notes and notes[f"Mounts.{to}"][0] == REFUSED:
            continue
        volume = f"{wishes.container}.{at}"
        fresh[volume] = to
        host["Binds"] = [bind for bind in host.get("Binds") or [] if _destination(bind) != to]
        host["Mounts"] = [mount for mount in host["Mounts"] if mount["Target"] != to]
        host["Mounts"].append({"Type": "volume", "Source": volume, "Target": to, "ReadOnly": False})
        notes[f"Mounts.{to}"] = REWRITTEN, "a volume of its own, which the sync driver fills; goes with it"
    return fresh


def _references(original: dict, host: dict, wishes: Wishes, notes: dict) -> None:
    """What names other containers is there on the same engine, and not on another."""
    name = _name(original)
    mode = host["NetworkMode"]
    if mode in ("host", "none") or mode.startswith("container:"):
        notes["HostConfig.NetworkMode"] = (
            REFUSED,
            f"{name} runs with --network {mode}, so a clone could have no address or port of its own",
        )
    for key in ("PidMode", "IpcMode", "UTSMode", "UsernsMode"):
        if (value := host.get(key) or "").startswith("container:"):
            if wishes.remote:
                notes[f"HostConfig.{key}"] = REFUSED, f"{name} shares {key} with {value}, not on this host"
            else:
                notes[f"HostConfig.{key}"] = SAME, "that container is on the same engine"
    if links := host.get("Links"):
        # Told as /TARGET:/ORIGINAL/ALIAS, taken as TARGET:ALIAS.
        pairs = [link.split(":", 1) for link in links]
        host["Links"] = [f"{to.lstrip('/')}:{alias.rpartition('/')[2]}" for to, alias in pairs]
        if wishes.remote:
            others = ", ".join(to.lstrip("/") for to, _ in pairs)
            notes["HostConfig.Links"] = REFUSED, f"{name} is linked to {others}, not on the shadow's host"
        else:
            notes["HostConfig.Links"] = SAME, "the containers it is linked to are on the same engine"


def _name(original: dict) -> str:
    return str(original["Name"]).lstrip("/")


def _bindings(original: dict, host: dict, wishes: Wishes, notes: dict) -> dict[str, list[dict]]:
    """Published ports, each given the next host port from the first one on."""
    wanted = host.get("PortBindings") or {}
    if host.get("PublishAllPorts"):
        wanted = {port: there for port, there in original["NetworkSettings"]["Ports"].items() if there}
        notes["HostConfig.PublishAllPorts"] = REWRITTEN, "each port that is published, by a chosen one"
    host["PublishAllPorts"] = False
    low, high = wishes.port_range
    bindings: dict[str, list[dict]] = {}
    offset = 0
    for container_port in sorted(wanted):
        for binding in wanted[container_port] or []:
            if ":" in binding.get("HostIp", ""):
                continue
            any_address = binding.get("HostIp", "") in ANY_ADDRESS
            host_ip = binding.get("HostIp", "") if any_address else wishes.address or binding["HostIp"]
            host_port = low + (wishes.first_port - low + offset) % (high - low + 1)
            bindings.setdefault(container_port, []).append({"HostIp": host_ip, "HostPort": str(host_port)})
            offset += 1
    host["PortBindings"] = bindings
    if wanted:
        notes["HostConfig.PortBindings"] = REWRITTEN, "a host's port serves one container; IPv4 only"
    return bindings


def _serves_at(original: dict, bindings: dict, wishes: Wishes, notes: dict) -> tuple[str | None, int]:
    """As its parent does: by a published port, or by an address of its own, which only the engine knows."""
    at, port = wishes.parent_address, wishes.parent_port
    container_port = published(original, wishes.protocol, at, port)
    if container_port is None:
        if addressed(original, at) is None:
            notes["Networks"] = REFUSED, f"{_name(original)} neither has nor publishes {at}:{port}"
        return None, port
    if wishes.remote and not wishes.address:
        reason = "the shadow's host needs the variable address: where its published ports are reached"
        notes["HostConfig.PortBindings"] = REFUSED, reason
    binding = bindings[container_port][0]
    specific = binding["HostIp"] not in ANY_ADDRESS
    return binding["HostIp"] if specific else wishes.address or at, int(binding["HostPort"])


def _networks(original: dict, host: dict, wishes: Wishes, notes: dict) -> dict[str, dict]:
    """Network -> how the shadow joins it: as the original, without its address, MAC and names."""
    networks = {}
    for network, settings in original["NetworkSettings"]["Networks"].items():
        networks[network] = {key: settings[key] for key in ("DriverOpts", "GwPriority") if settings.get(key)}
        if links := settings.get("Links"):
            networks[network]["Links"] = links
            if wishes.remote:
                others = ", ".join(link.partition(":")[0] for link in links)
                reason = f"{_name(original)} is linked to {others} in {network}, not on the shadow's host"
                notes[f"Networks.{network}"] = REFUSED, reason
        notes.setdefault(
            f"Networks.{network}",
            (REWRITTEN, "the engine chooses address and MAC; aliases are the original's"),
        )
    mode = "bridge" if host["NetworkMode"] == "default" else host["NetworkMode"]
    if mode not in networks and networks and "HostConfig.NetworkMode" not in notes:
        # It was disconnected from the one it was made with, or that is named by its id.
        host["NetworkMode"] = next(iter(networks))
        notes["HostConfig.NetworkMode"] = REWRITTEN, "a network that it is in"
    first = mode if mode in networks else next(iter(networks), None)
    return {name: networks[name] for name in sorted(networks, key=lambda name: name != first)}


# ---- texts: environment, command, health check ------------------------------------------


def _texts(config: dict, wishes: Wishes, address: str | None, port: int, notes: dict) -> None:
    rules = _Rules(wishes, address, port)
    environment = []
    for entry in config.get("Env") or []:
        key, equals, value = entry.partition("=")
        field_name = f"Config.Env.{key}"
        if key in wishes.environment_drop:
            environment.append(key)  # without a value: else the image's would be taken
            notes[field_name] = LEFT_OUT, "as environment_drop says"
        elif key in wishes.environment_set:
            continue
        else:
            environment.append(key + equals + rules.applied(value, field_name, notes))
    names = {entry.partition("=")[0] for entry in config.get("Env") or []}
    for key, value in wishes.environment_set.items():
        environment.append(f"{key}={rules.filled(value, f'environment_set.{key}', notes)}")
        verdict = REWRITTEN if key in names else ADDED
        notes.setdefault(f"Config.Env.{key}", (verdict, "as environment_set says"))
    config["Env"] = environment
    for key in ("Cmd", "Entrypoint"):
        if config.get(key):
            config[key] = [rules.applied(word, f"Config.{key}", notes) for word in config[key]]
    test = (config.get("Healthcheck") or {}).get("Test")
    if test:
        config["Healthcheck"]["Test"] = [rules.applied(w, "Config.Healthcheck", notes) for w in test]
    for at in set(range(len(wishes.rewrite))) - rules.used:
        notes[f"rewrite.{at}"] = (
            REFUSED,
            (
                f"rewrite.{at}: what it finds stands nowhere in command, environment or health check: "
                "mend it, or leave it out"
            ),
        )


class _Rules:
    """The user's rules, then the parent's ADDRESS:PORT wherever it stands."""

    def __init__(self, wishes: Wishes, address: str | None, port: int) -> None:
        self._wishes = wishes
        self._address, self._port = address, port
        self._old = f"{bracketed(wishes.parent_address)}:{wishes.parent_port}"
        self._pair = re.compile(rf"(?<![\d.]){re.escape(self._old)}(?!\d)")
        self.used: set[int] = set()

    def applied(self, text: str, field_name: str, notes: dict) -> str:
        for at, rule in enumerate(self._wishes.rewrite):
            if rule["find"] in text:
                self.used.add(at)
                text = text.replace(rule["find"], self.filled(rule["replace"], f"rewrite.{at}", notes))
                self._rewritten(field_name, f"as rewrite.{at} says", notes)
        if not self._pair.search(text):
            return text
        if self._address is None:
            notes[field_name] = (
                REFUSED,
                (
                    f"{field_name} names {self._old}, and which address the shadow gets is known only when "
                    "it runs: say what it is to be instead (rewrite, environment_set, environment_drop)"
                ),
            )
            return text
        new = f"{bracketed(self._address)}:{self._port}"
        if new != self._old:
            self._rewritten(field_name, f"{self._old} is the original's: {new}", notes)
        return self._pair.sub(lambda _: new, text)

    @staticmethod
    def _rewritten(field_name: str, reason: str, notes: dict) -> None:
        """One word of a command may be refused and another one rewritten: refused it is then."""
        if notes.get(field_name, ("", ""))[0] != REFUSED:
            notes[field_name] = REWRITTEN, reason

    def filled(self, text: str, where: str, notes: dict) -> str:
        """``{name}``, ``{address}`` and ``{port}`` replaced; any other brace is left alone."""
        if self._address is None and "{address}" in text:
            notes[where] = REFUSED, f"{where}: which {{address}} the shadow gets is known only when it runs"
        new = {"name": self._wishes.shadow, "address": self._address or "", "port": str(self._port)}
        return re.sub(r"\{(name|address|port)\}", lambda match: new[match[1]], text)


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# ---- original against clone -------------------------------------------------------------


def fields_of(config: dict, host: dict, mounts: dict[str, str], networks: list[str]) -> dict[str, str]:
    """Field -> its value as text. What is empty is as good as not there."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if key == "Env":
            found |= {f"Config.Env.{one.partition('=')[0]}": one for one in value or []}
        elif key == "Labels":
            found |= {f"Config.Labels.{label}": text for label, text in (value or {}).items()}
        else:
            found[f"Config.{key}"] = [] if key == "Entrypoint" and value == [""] else value
    found |= {f"HostConfig.{key}": value for key, value in host.items() if key not in ("Mounts", "Binds")}
    found |= {f"Mounts.{to}": source for to, source in mounts.items()}
    found |= {f"Networks.{network}": network for network in networks}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items() if given(value)}


def given(value: object) -> bool:
    """False: it says no more than if it were missing ([0, 0] is the size of no console)."""
    return any(map(given, value)) if isinstance(value, list) else bool(value)


def rows(original: dict, clone: Clone, wishes: Wishes) -> list[dict[str, str]]:
    """Field by field what becomes of the original; confidential values only as same or not."""
    mounts = {one["Destination"]: _source(one) for one in original["Mounts"]}
    host = clone.body["HostConfig"]
    clone_mounts = dict(mounts) | {to: f"volume {volume}" for volume, to in clone.fresh_volumes.items()}
    config = {key: value for key, value in clone.body.items() if key != "HostConfig"}
    was_config = {**original["Config"], "Image": original["Image"]}
    was = fields_of(was_config, original["HostConfig"], mounts, [*original["NetworkSettings"]["Networks"]])
    now = fields_of(config, host, clone_mounts, [*clone.networks])
    was["Name"], now["Name"] = json.dumps(_name(original)), json.dumps(wishes.container)
    told = []
    for key in sorted({*was, *now, *clone.notes}):
        same = was.get(key) == now.get(key)
        default = SAME if same else LEFT_OUT if key not in now else ADDED if key not in was else REWRITTEN
        verdict, reason = clone.notes.get(key, (default, ""))
        hidden = key.startswith((*CONFIDENTIAL, *CONFIDENTIAL_HOST)) and verdict != ADDED
        before, after = ("***" if hidden and one else one for one in (was.get(key, ""), now.get(key, "")))
        after = "" if verdict in (LEFT_OUT, REFUSED) else before if verdict == SAME else after
        if key.startswith("Config.Env."):
            after = "***" if after else ""
        told.append({"field": key, "verdict": verdict, "original": before, "clone": after, "reason": reason})
    return told


def _source(mount: dict) -> str:
    mode = "" if mount["RW"] else ", read-only"
    return f"{mount['Type']} {mount.get('Name') or mount['Source']}{mode}".strip()


def untaken(clone: Clone, created: dict) -> list[str]:
    """Fields that were asked for and that the engine, by what it says of the created one, did not take."""
    lost = []
    for part, asked, has in (
        ("Config", {k: v for k, v in clone.body.items() if k != "HostConfig"}, created["Config"]),
        ("HostConfig", clone.body["HostConfig"], created["HostConfig"]),
    ):
        for key, value in asked.items():
            wanted = [] if key == "Entrypoint" and value == [""] else value
            # Told otherwise than asked for (links), or with what the image adds.
            if key in ("Image", "Hostname", "Labels", "Links", "Volumes") or not given(wanted):
                continue
            if key == "Mounts":
                there = {mount["Destination"] for mount in created["Mounts"]}
                lost += [f"Mounts.{m['Target']}" for m in value if m["Target"] not in there]
            elif has.get(key) != value:
                lost.append(f"{part}.{key}")
    return lost
