#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Shadows that are containers: a clone of the container that serves the parent's address.

What is asked of engines is here; which container a shadow becomes is in module_utils/penumbra_container.py.
Nothing read from a container passes through Ansible's templates, nor into its messages.
"""

from __future__ import annotations

import fcntl
import ipaddress
import traceback
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import docker
from ansible.module_utils import penumbra_container as rules
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.penumbra_container import RefusedError
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

ARGUMENTS = {
    "state": {"choices": ["present", "absent", "listed", "inspected", "planned"], "default": "present"},
    "instance": {"required": True},
    "name": {},
    "service": {},
    "parent": {"type": "dict"},
    "parents": {"type": "list", "elements": "dict"},
    "protocol": {"choices": ["tcp", "udp"], "default": "tcp"},
    "specification": {"no_log": True},
    "synced": {"type": "bool", "default": False},
    "docker_host": {"default": "unix:///var/run/docker.sock"},
    "parent_docker_host": {},
    "same_host": {"type": "bool", "default": True},
    "address": {},
    "container": {},
    "shared_mounts": {"type": "list", "elements": "str", "default": []},
    "fresh_mounts": {"type": "list", "elements": "str", "default": []},
    # JSON in base64: what the user sets may be a secret, and is a template no more.
    "texts": {"no_log": True},
    "port_range": {"type": "list", "elements": "int"},
    "stop_timeout_s": {"type": "int"},
    "run_dir": {},
}

ATTEMPTS = 16
TIMEOUT_S = 60
TRANSFER_TIMEOUT_S = 600
KEPT_TIMEOUT_S = 3
"""Of the original's engine, where a specification is kept that does without it."""


# ---- the original -----------------------------------------------------------------------


@dataclass
class Engines:
    """The shadow's engine and, if it can be reached from here, the original's."""

    target: docker.APIClient
    source: docker.APIClient | None
    why: str = ""
    """Why there is no source."""

    @property
    def remote(self) -> bool:
        return self.source is not self.target


def connect(url: str, timeout: int = TIMEOUT_S) -> docker.APIClient:
    try:
        return docker.APIClient(
            base_url=url, version="auto", timeout=timeout, use_ssh_client=url.startswith("ssh://")
        )
    except (DockerException, OSError) as error:
        raise RefusedError(f"no engine answers at {url} (variable docker_host): {error}") from None


def engines(p: dict) -> Engines:
    target = connect(p["docker_host"])
    if p["same_host"]:
        return Engines(target, target)
    url = p["parent_docker_host"] or ""
    if not url:
        return Engines(target, None, "its host has no docker_host that is reached from here")
    try:
        return Engines(target, connect(url, KEPT_TIMEOUT_S if p["specification"] else TIMEOUT_S))
    except RefusedError as error:
        return Engines(target, None, str(error))


def serves(original: dict, p: dict, parent: dict) -> bool:
    labels = original["Config"].get("Labels") or {}
    at = parent["address"]
    return "penumbra.shadow" not in labels and bool(
        rules.published(original, p["protocol"], at, int(parent["port"])) or rules.addressed(original, at)
    )


def candidates(p: dict, engine: docker.APIClient) -> list[dict]:
    """What the engine says of the running ones, or of the one that the variable container names."""
    names = [p["container"]] if p["container"] else [row["Id"] for row in engine.containers()]
    found = []
    for name in names:
        try:
            found.append(engine.inspect_container(name))
        except NotFound:
            if p["container"]:
                raise RefusedError(f"there is no container {name} (variable container)") from None
    return [one for one in found if one["State"]["Running"]]


def find_original(p: dict, parent: dict, running: list[dict], engine: docker.APIClient) -> dict:
    """What is kept of the container that serves the parent's address, or RefusedError."""
    for found in running:
        if p["container"] or serves(found, p, parent):
            return kept_of(found, engine)
    if p["container"]:
        raise RefusedError(f"container {p['container']} does not run")
    raise RefusedError(
        f"no running container has or publishes {parent['address']}:{parent['port']} ({parent['name']}): "
        "set the variable container to its name"
    )


def kept_of(inspected: dict, engine: docker.APIClient) -> dict:
    try:
        digests = engine.inspect_image(inspected["Image"]).get("RepoDigests") or []
    except ImageNotFound:  # removed by force, while it runs
        digests = []
    return rules.specification(inspected, sorted(digests))


def read_original(p: dict, at: Engines) -> tuple[dict, str]:
    """The running one, so that what changed a second ago counts; else what was kept of it."""
    why = at.why
    if at.source is not None:
        try:
            running = candidates(p, at.source)
            return find_original(p, p["parent"], running, at.source), "live"
        except RefusedError as error:
            why = str(error)
        except (DockerException, OSError) as error:
            why = f"its engine does not answer: {error}"
    if not p["specification"]:
        raise RefusedError(f"{why}; and no specification of {p['parent']['name']} is kept")
    return rules.decoded(p["specification"]), "kept"


# ---- images, volumes, networks ----------------------------------------------------------


def has_image(image: str, engine: docker.APIClient) -> bool:
    try:
        engine.inspect_image(image)
    except ImageNotFound:
        return False
    return True


def bring_image(p: dict, original: dict, at: Engines) -> None:
    """To the shadow's engine if it is not there: from the original's in pieces, else from a registry."""
    image = original["Image"]
    if has_image(image, at.target):
        return
    with one_at_a_time(p):
        if not has_image(image, at.target):
            fetch(p, original, at)


@contextmanager
def one_at_a_time(p: dict) -> Iterator[None]:
    """Of those that bring images to an engine: ten shadows at once need one, once."""
    folder = Path(p["run_dir"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / f"images-{zlib.crc32(p['docker_host'].encode())}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(p: dict, original: dict, at: Engines) -> None:
    image, tried = original["Image"], []
    if at.source is None or not at.remote:
        tried.append(f"the original's host can't give it ({at.why or 'it is the same'})")
    else:
        try:
            transfer(image, p["parent_docker_host"], p["docker_host"])
        except (DockerException, OSError) as error:
            tried.append(f"its transfer from the original's host failed ({error})")
    for digest in original["RepoDigests"]:
        if has_image(image, at.target):
            return
        try:
            at.target.pull(digest)
        except (DockerException, OSError) as error:
            tried.append(f"no registry gives {digest} ({error})")
    if not has_image(image, at.target):
        raise RefusedError(
            f"image {image} of {original['Name'].lstrip('/')} is not on the shadow's host: "
            f"{'; '.join(tried)}; load it there (docker save, docker load)"
        )


def transfer(image: str, source: str, target: str) -> None:
    """The engine registers an image when all of it has come: what is cut off leaves none."""
    # By connections of their own: packing a large image takes longer than any other answer.
    pieces = connect(source, TRANSFER_TIMEOUT_S).get_image(image)
    for told in connect(target, TRANSFER_TIMEOUT_S).load_image(pieces):
        if "error" in told:
            raise DockerException(told["error"])


def missing_there(original: dict, clone: rules.Clone, target: docker.APIClient) -> list[str]:
    """Volumes and networks of another engine that the target lacks: it would make volumes, empty."""
    lacking = []
    fresh = set(clone.fresh_volumes.values())
    for mount in original["Mounts"]:
        if mount["Type"] == "volume" and mount["Destination"] not in fresh:
            try:
                target.inspect_volume(mount["Name"])
            except NotFound:
                lacking.append(f"volume {mount['Name']} ({mount['Destination']})")
    for network in clone.networks:
        try:
            target.inspect_network(network)
        except NotFound:
            lacking.append(f"network {network}")
    return [f"{one} is not on the shadow's host: make it there, or choose another host" for one in lacking]


# ---- present ----------------------------------------------------------------------------


def container_name(p: dict) -> str:
    return f"penumbra.{p['instance']}.{p['name']}"


def own(p: dict, engine: docker.APIClient) -> dict | None:
    """The shadow's container, if there is one. Raises RefusedError if the name is somebody else's."""
    try:
        found = engine.inspect_container(container_name(p))
    except NotFound:
        return None
    labels = found["Config"]["Labels"] or {}
    if (labels.get("penumbra.instance"), labels.get("penumbra.shadow")) != (p["instance"], p["name"]):
        raise RefusedError(
            f"container {container_name(p)} is not a shadow of {p['instance']}: rename or remove it"
        )
    return found


def wishes_of(p: dict, original: dict, remote: bool, attempt: int = 0) -> rules.Wishes:
    low, high = p["port_range"]
    parent, texts = p["parent"], rules.texts_of(p["texts"])
    first = rules.first_port(p["instance"], p["name"], low, high)
    port = int(parent["port"])
    return rules.Wishes(
        container=container_name(p),
        shadow=p["name"],
        parent_address=parent["address"],
        parent_port=port,
        protocol=p["protocol"],
        address=p["address"],
        remote=remote,
        synced=p["synced"],
        shared_mounts=tuple(p["shared_mounts"]),
        fresh_mounts=tuple(p["fresh_mounts"]),
        rewrite=tuple(texts.get("rewrite") or ()),
        environment_set={key: str(value) for key, value in (texts.get("environment_set") or {}).items()},
        environment_drop=tuple(texts.get("environment_drop") or ()),
        port_range=(low, high),
        first_port=low + (first - low + attempt * 7) % (high - low + 1),
        labels={
            **labels_of(p),
            "penumbra.address": parent["address"],
            "penumbra.port": f"{port}/{p['protocol']}",
            "penumbra.published": rules.published(original, p["protocol"], parent["address"], port) or "",
            "penumbra.network": rules.addressed(original, parent["address"]) or "",
        },
    )


def labels_of(p: dict) -> dict[str, str]:
    return {
        "penumbra.instance": p["instance"],
        "penumbra.shadow": p["name"],
        "penumbra.service": p["service"],
        "penumbra.parent": p["parent"]["name"],
        "penumbra.id": p["id"],
        "penumbra.created": p["created"],
    }


def create(p: dict, original: dict, at: Engines) -> None:
    """Creates and starts the shadow; a host port that is taken is passed over."""
    error = None
    for attempt in range(ATTEMPTS):
        clone = rules.clone_of(original, wishes_of(p, original, at.remote, attempt))
        try:
            make_volumes(p, clone, at.target)
            start(p, clone, at.target)
            return
        except (APIError, RefusedError) as failed:
            error = failed
            remove(p, at.target, 0)
            if "already allocated" not in str(failed) and "already in use" not in str(failed):
                break
    why = error.explanation if isinstance(error, APIError) else error
    raise RefusedError(f"the engine can't start {p['name']}: {why}")


def make_volumes(p: dict, clone: rules.Clone, engine: docker.APIClient) -> None:
    """Before the container that would make them without labels, and nobody would find them after a crash."""
    for volume in clone.fresh_volumes:
        engine.create_volume(volume, labels=labels_of(p))


def start(p: dict, clone: rules.Clone, engine: docker.APIClient) -> None:
    (first, joined), *others = clone.networks.items()
    body = {**clone.body, "NetworkingConfig": {"EndpointsConfig": {first: joined}}}
    container = engine.create_container_from_config(body, container_name(p))["Id"]
    if lost := rules.untaken(clone, engine.inspect_container(container)):
        raise RefusedError(f"this host's engine does not take {', '.join(lost)} of the original")
    for network, settings in others:
        engine.connect_container_to_network(
            container, network, links=settings.get("Links"), driver_opt=settings.get("DriverOpts")
        )
    engine.start(container)


def require_running(clone: dict, engine: docker.APIClient) -> None:
    state = clone["State"]
    if not state["Running"]:
        try:
            said = engine.logs(clone["Id"], tail=1).decode(errors="replace").strip() or "it said nothing"
        except APIError:
            said = "its log driver tells nobody"
        raise RefusedError(
            f"{clone['Name'].lstrip('/')} ended right after its start with {state['ExitCode']}; "
            f"last line: {said}"
        )


def present(p: dict) -> dict:
    at = engines(p)
    clone = own(p, at.target)
    if clone is not None and clone["State"]["Running"]:
        return {"changed": False, "shadow": told_of(clone, p["address"])}
    original, source = read_original(p, at)
    p["original"] = original
    planned = rules.clone_of(original, wishes_of(p, original, at.remote))
    refused = planned.refusals
    p["refused"] = bool(refused)  # as by any other host
    if not refused and at.remote:
        refused = missing_there(original, planned, at.target)
    if refused:
        raise RefusedError("; ".join(refused))
    remove(p, at.target, 0)
    bring_image(p, original, at)
    create(p, original, at)
    clone = at.target.inspect_container(container_name(p))
    require_running(clone, at.target)
    return {"changed": True, "made_from": source, "shadow": told_of(clone, p["address"])}


def told_of(clone: dict, address: str | None) -> dict:
    labels = clone["Config"]["Labels"]
    told = {"id": labels.get("penumbra.id", ""), "created": labels.get("penumbra.created", "")}
    return found_at(clone, address) | told


def found_at(clone: dict, address: str | None) -> dict:
    """Where a shadow serves, as its labels say how its parent did; nothing if it doesn't run."""
    labels, settings = clone["Config"]["Labels"], clone["NetworkSettings"]
    for binding in (settings["Ports"] or {}).get(labels.get("penumbra.published")) or []:
        if ipaddress.ip_address(binding["HostIp"] or 0).version == 4:
            any_address = binding["HostIp"] in rules.ANY_ADDRESS
            where = (address or labels["penumbra.address"]) if any_address else binding["HostIp"]
            return {"address": where, "port": int(binding["HostPort"])}
    where = (settings["Networks"].get(labels.get("penumbra.network")) or {}).get("IPAddress")
    return {"address": where, "port": int(labels["penumbra.port"].partition("/")[0])} if where else {}


# ---- planned, inspected, absent, listed -------------------------------------------------


def planned(p: dict) -> dict:
    """What ``present`` would make of each field; nothing is changed."""
    at = engines(p)
    original, source = read_original(p, at)
    p["original"] = original
    wishes = wishes_of(p, original, at.remote)
    clone = rules.clone_of(original, wishes)
    rows = rules.rows(original, clone, wishes)
    lacking = missing_there(original, clone, at.target) if at.remote else []
    rows += [row_of("Host", rules.REFUSED, reason) for reason in lacking]
    if not has_image(original["Image"], at.target):
        if at.source is not None and at.remote:
            rows.append(row_of("Image", rules.SAME, "is transferred from the original's host"))
        elif original["RepoDigests"]:
            rows.append(row_of("Image", rules.SAME, f"is pulled: {original['RepoDigests'][0]}"))
        else:
            reason = f"image {original['Image']} is not on the shadow's host, and nobody can give it"
            rows.append(row_of("Image", rules.REFUSED, reason))
    return {"changed": False, "plan": rows, "made_from": source}


def row_of(field: str, verdict: str, reason: str) -> dict[str, str]:
    return {"field": field, "verdict": verdict, "original": "", "clone": "", "reason": reason}


def inspected(p: dict) -> dict:
    """Parent's name -> what is kept of it, or why it can't be read."""
    engine = connect(p["docker_host"])
    running = candidates(p, engine)
    specifications, unread = {}, {}
    for parent in p["parents"]:
        try:
            specifications[parent["name"]] = rules.encoded(find_original(p, parent, running, engine))
        except RefusedError as error:
            unread[parent["name"]] = str(error)
    return {"changed": False, "specifications": specifications, "unread": unread}


def labelled(p: dict) -> list[str]:
    return [f"penumbra.instance={p['instance']}", f"penumbra.shadow={p['name']}"]


def remove(p: dict, engine: docker.APIClient, stop_timeout_s: int) -> bool:
    """The shadow's container, then the volumes of its own: cut off in between, the next removal goes on."""
    clone = own(p, engine)
    if clone is not None:
        try:
            if stop_timeout_s:
                engine.stop(clone["Id"], timeout=stop_timeout_s)
            engine.remove_container(clone["Id"], force=True)
        except NotFound:
            pass  # it was started with --rm
        except APIError as error:
            if error.status_code != 409:  # being removed already
                raise
    volumes = [one["Name"] for one in engine.volumes(filters={"label": labelled(p)})["Volumes"] or []]
    for volume in volumes:
        engine.remove_volume(volume, force=True)
    return clone is not None or bool(volumes)


def absent(p: dict) -> dict:
    return {"changed": remove(p, connect(p["docker_host"]), p["stop_timeout_s"])}


def listed(p: dict) -> dict:
    """Shadows by their labels: containers, and volumes whose container is gone."""
    engine = connect(p["docker_host"])
    by_label = {"label": f"penumbra.instance={p['instance']}"}
    shadows = {}
    for row in engine.containers(all=True, filters=by_label):
        try:
            clone = engine.inspect_container(row["Id"])
        except NotFound:
            continue
        shadows[row["Labels"]["penumbra.shadow"]] = told_of(clone, p["address"]) | owners(row["Labels"])
    for volume in engine.volumes(filters=by_label)["Volumes"] or []:
        shadows.setdefault(volume["Labels"]["penumbra.shadow"], owners(volume["Labels"]))
    return {"changed": False, "shadows": list(shadows.values())}


def owners(labels: dict[str, str]) -> dict[str, str]:
    keys = ("instance", "shadow", "service", "parent", "id", "created")
    return {key: labels.get(f"penumbra.{key}", "") for key in keys}


STATES = {
    "present": present,
    "absent": absent,
    "listed": listed,
    "inspected": inspected,
    "planned": planned,
}


def main() -> None:
    asked = ["name", "service", "parent", "port_range"]
    module = AnsibleModule(
        ARGUMENTS,
        required_if=[
            ("state", "present", [*asked, "run_dir"]),
            ("state", "planned", asked),
            ("state", "inspected", ["parents"]),
            ("state", "absent", ["name", "stop_timeout_s"]),
        ],
    )
    p = dict(module.params)  # those go into every result, and what is read of the original must not
    p["id"] = uuid.uuid4().hex[:12]
    p["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 - Python 3.9
    try:
        result = STATES[p["state"]](p)
    except Exception as error:  # whatever it is, it may quote what was asked for
        message = said(error)
        if original := p.get("original"):
            message = rules.redacted(message, original, rules.texts_of(p["texts"]))
        module.fail_json(msg=message, refused=p.get("refused", False))
    module.exit_json(**result)


def said(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, DockerException):
        return f"the container engine refused: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(last.filename).name}, line {last.lineno}): {error}"


if __name__ == "__main__":
    main()
