#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Shadows that are containers: a clone of the running container that serves the parent's address.

Everything comes from what the engine says of the original (GET /containers/ID/json) and goes back as it came,
but for what this file's rules change. Nothing read from a container passes through Ansible's templates.
"""

from __future__ import annotations

import copy
import ipaddress
import zlib

import docker
from ansible.module_utils.basic import AnsibleModule
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

ARGUMENTS = {
    "state": {"choices": ["present", "absent", "listed"], "default": "present"},
    "instance": {"required": True},
    "name": {},
    "service": {},
    "parent": {"type": "dict"},
    "protocol": {"choices": ["tcp", "udp"], "default": "tcp"},
    "docker_host": {"default": "unix:///var/run/docker.sock"},
    "parent_docker_host": {},
    "address": {},
    "container": {},
    "shared_mounts": {"type": "list", "elements": "str"},
    "port_range": {"type": "list", "elements": "int"},
    "stop_timeout_s": {"type": "int"},
}

# Labels by which other tools own a container: a shadow is not theirs.
FOREIGN_LABELS = (
    "com.docker.compose.",
    "com.docker.stack.",
    "com.docker.swarm.",
    "io.kubernetes.",
    "penumbra.",
)
ATTEMPTS = 16


class RefusedError(Exception):
    """It can't be done; the message says why and what to do."""


# ---- the rules: (what the engine says of the original) -> what is created ----------------


def published(original: dict, protocol: str, address: str, port: int) -> str | None:
    """The container's port (``80/tcp``) that is published as address:port of the host, if it is."""
    for container_port, bindings in (original["NetworkSettings"]["Ports"] or {}).items():
        for binding in bindings or []:
            on_address = binding["HostIp"] in ("", "0.0.0.0", address)  # noqa: S104
            if container_port.endswith("/" + protocol) and on_address and int(binding["HostPort"]) == port:
                return container_port
    return None


def addressed(original: dict, address: str) -> str | None:
    """The network in which the original has this address, if there is one."""
    networks = original["NetworkSettings"]["Networks"]
    return next((name for name, network in networks.items() if network["IPAddress"] == address), None)


def refusals(original: dict, shared_mounts: list[str]) -> list[str]:
    """Why this container can't be cloned, a sentence each."""
    name = original["Name"].lstrip("/")
    reasons = [
        f"{name} has the writable mount {mount['Destination']} "
        f"({mount['Type']} {mount.get('Name') or mount['Source']}): two writers may destroy its data; "
        f"if they may share it, add {mount['Destination']} to shared_mounts"
        for mount in original["Mounts"]
        if mount["RW"] and mount["Type"] != "tmpfs" and mount["Destination"] not in shared_mounts
    ]
    mode = original["HostConfig"]["NetworkMode"]
    if mode in ("host", "none") or mode.startswith("container:"):
        reasons.append(
            f"{name} runs with --network {mode}, so a clone could have no address or port of its own"
        )
    return reasons


def clone_config(original: dict, name: str, labels: dict[str, str]) -> dict:
    """The body that creates the shadow, without host ports and networks."""
    config = copy.deepcopy(original["Config"])
    host = copy.deepcopy(original["HostConfig"])
    config["Image"] = original["Image"]
    # A name or an id as host name was the original's; a chosen one is configuration, and stays.
    if original["Id"].startswith(config.get("Hostname") or "-"):
        config["Hostname"] = ""
    elif config.get("Hostname") == original["Name"].lstrip("/"):
        config["Hostname"] = name
    config.pop("MacAddress", None)
    kept = {k: v for k, v in (config.get("Labels") or {}).items() if not k.startswith(FOREIGN_LABELS)}
    config["Labels"] = kept | labels
    host["ContainerIDFile"] = ""
    host["PublishAllPorts"] = False
    host["Mounts"] = (host.get("Mounts") or []) + anonymous_mounts(original, host)
    return {**config, "HostConfig": host}


def anonymous_mounts(original: dict, host: dict) -> list[dict]:
    """Volumes that only the running original names: those the image asked for, and --volumes-from."""
    named = {bind.split(":")[1] for bind in host.get("Binds") or []}
    named |= {mount["Target"] for mount in host.get("Mounts") or []}
    inherited = bool(host.pop("VolumesFrom", None))
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


def clone_networks(original: dict) -> dict[str, dict]:
    """Network -> how the shadow joins it: as the original, without its address, MAC and names."""
    networks = {}
    for network, settings in original["NetworkSettings"]["Networks"].items():
        networks[network] = {
            key: settings[key] for key in ("Links", "DriverOpts", "GwPriority") if settings.get(key)
        }
    return networks


def clone_bindings(original: dict, first: int, p: dict) -> dict[str, list[dict]]:
    """Published ports, each given the next host port from ``first`` on."""
    wanted = original["HostConfig"].get("PortBindings") or {}
    if original["HostConfig"].get("PublishAllPorts"):
        wanted = {
            port: bindings for port, bindings in original["NetworkSettings"]["Ports"].items() if bindings
        }
    low, high = p["port_range"]
    bindings: dict[str, list[dict]] = {}
    offset = 0
    for container_port in sorted(wanted):
        for binding in wanted[container_port] or []:
            if ":" in binding.get("HostIp", ""):
                continue
            any_address = binding.get("HostIp", "") in ("", "0.0.0.0")  # noqa: S104
            host_ip = binding.get("HostIp", "") if any_address else p["address"] or binding["HostIp"]
            host_port = low + (first - low + offset) % (high - low + 1)
            bindings.setdefault(container_port, []).append({"HostIp": host_ip, "HostPort": str(host_port)})
            offset += 1
    return bindings


def first_port(instance: str, name: str, low: int, high: int) -> int:
    """Where the search for free host ports starts: the same for the same shadow."""
    return low + zlib.crc32(f"{instance}/{name}".encode()) % (high - low + 1)


# ---- present ----------------------------------------------------------------------------


def connect(url: str) -> docker.APIClient:
    try:
        return docker.APIClient(
            base_url=url, version="auto", timeout=60, use_ssh_client=url.startswith("ssh://")
        )
    except DockerException as error:
        raise RefusedError(f"no engine answers at {url} (variable docker_host): {error}") from None


def find_original(p: dict, engine: docker.APIClient) -> dict:
    """What the engine says of the container that serves the parent's address, or RefusedError."""
    parent = p["parent"]
    if p["container"]:
        try:
            return engine.inspect_container(p["container"])
        except NotFound:
            raise RefusedError(f"there is no container {p['container']} (variable container)") from None
    for row in engine.containers():
        original = engine.inspect_container(row["Id"])
        if published(original, p["protocol"], parent["address"], parent["port"]) or addressed(
            original, parent["address"]
        ):
            return original
    raise RefusedError(
        f"no running container has or publishes {parent['address']}:{parent['port']} ({parent['name']}): "
        "set the variable container to its name"
    )


def bring_image(image: str, source: docker.APIClient, target: docker.APIClient) -> None:
    """Copies an image between engines if the target doesn't have it."""
    try:
        target.inspect_image(image)
    except ImageNotFound:
        target.load_image(source.get_image(image))


def check_volumes(original: dict, target: docker.APIClient) -> None:
    """For another engine than the original's: a volume that is missing there would be made, empty."""
    for mount in original["Mounts"]:
        if mount["Type"] == "volume":
            try:
                target.inspect_volume(mount["Name"])
            except NotFound:
                raise RefusedError(
                    f"volume {mount['Name']} ({mount['Destination']}) is not on the shadow's host"
                ) from None


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


def create(p: dict, original: dict, engine: docker.APIClient) -> None:
    """Creates and starts the shadow; a host port that is taken is passed over."""
    low, high = p["port_range"]
    labels = {
        "penumbra.instance": p["instance"],
        "penumbra.shadow": p["name"],
        "penumbra.service": p["service"],
        "penumbra.parent": p["parent"]["name"],
        "penumbra.address": p["parent"]["address"],
        "penumbra.port": f"{p['parent']['port']}/{p['protocol']}",
    }
    body = clone_config(original, p["name"], labels)
    first = first_port(p["instance"], p["name"], low, high)
    error = None
    for attempt in range(ATTEMPTS):
        bindings = clone_bindings(original, low + (first - low + attempt * 7) % (high - low + 1), p)
        body["HostConfig"]["PortBindings"] = bindings
        networks = clone_networks(original)
        head = next(iter(networks))
        body["HostConfig"]["NetworkMode"] = original["HostConfig"]["NetworkMode"]
        body["NetworkingConfig"] = {"EndpointsConfig": {head: networks.pop(head)}}
        container = engine.create_container_from_config(body, container_name(p))["Id"]
        try:
            for network, settings in networks.items():
                engine.connect_container_to_network(container, network, **joined(settings))
            engine.start(container)
            return
        except APIError as failed:
            error = failed
            engine.remove_container(container, force=True)
            if "already allocated" not in str(failed) and "already in use" not in str(failed):
                break
    raise RefusedError(f"the engine can't start {p['name']}: {error.explanation if error else ''}")


def joined(settings: dict) -> dict:
    return {"links": settings.get("Links"), "driver_opt": settings.get("DriverOpts")}


def serving_at(p: dict, original_port: str | None, network: str | None, clone: dict) -> dict:
    """Where the shadow serves: as its parent does, by a published port or by its own address."""
    parent = p["parent"]
    if original_port is None:
        address = clone["NetworkSettings"]["Networks"][network]["IPAddress"]
        return {"address": address, "port": parent["port"]}
    bindings = clone["NetworkSettings"]["Ports"][original_port]
    binding = next(b for b in bindings if ":" not in b["HostIp"])
    specific = binding["HostIp"] not in ("", "0.0.0.0")  # noqa: S104
    return {
        "address": binding["HostIp"] if specific else p["address"] or parent["address"],
        "port": int(binding["HostPort"]),
    }


def require_running(clone: dict, engine: docker.APIClient) -> None:
    state = clone["State"]
    if not state["Running"]:
        said = engine.logs(clone["Id"], tail=1).decode(errors="replace").strip() or "it said nothing"
        raise RefusedError(
            f"{clone['Name'].lstrip('/')} ended right after its start with {state['ExitCode']}; "
            f"last line: {said[:300]}"
        )


def present(p: dict) -> dict:
    # By the given addresses: all clients of local sockets have the same base_url.
    remote = bool(p["parent_docker_host"]) and p["parent_docker_host"] != p["docker_host"]
    engine = connect(p["docker_host"])
    source = connect(p["parent_docker_host"]) if remote else engine
    original = find_original(p, source)
    parent = p["parent"]
    port = published(original, p["protocol"], parent["address"], parent["port"])
    network = addressed(original, parent["address"])
    if port is None and network is None:
        raise RefusedError(
            f"{original['Name'].lstrip('/')} neither has nor publishes {parent['address']}:{parent['port']}"
        )
    if port is not None and remote and not p["address"]:
        raise RefusedError(
            "the shadow's host needs the variable address: where its published ports are reached"
        )
    clone = own(p, engine)
    changed = clone is None or not clone["State"]["Running"]
    if changed:
        reasons = refusals(original, p["shared_mounts"])
        if reasons:
            raise RefusedError("; ".join(reasons))
        if clone is not None:
            engine.remove_container(clone["Id"], force=True)
        if remote:
            bring_image(original["Image"], source, engine)
            check_volumes(original, engine)
        create(p, original, engine)
        clone = engine.inspect_container(container_name(p))
        require_running(clone, engine)
    return {"changed": changed, "shadow": serving_at(p, port, network, clone)}


# ---- absent and listed ------------------------------------------------------------------


def absent(p: dict) -> dict:
    engine = connect(p["docker_host"])
    clone = own(p, engine)
    if clone is None:
        return {"changed": False}
    try:
        engine.stop(clone["Id"], timeout=p["stop_timeout_s"])
        # Volumes stay: a shadow has none of its own.
        engine.remove_container(clone["Id"], force=True)
    except NotFound:
        pass  # it was started with --rm
    except APIError as error:
        if error.status_code != 409:  # being removed already
            raise
    return {"changed": True}


def listed(p: dict) -> dict:
    engine = connect(p["docker_host"])
    shadows = []
    for row in engine.containers(all=True, filters={"label": f"penumbra.instance={p['instance']}"}):
        labels = row["Labels"]
        shadow = {
            "instance": p["instance"],
            "shadow": labels["penumbra.shadow"],
            "service": labels["penumbra.service"],
            "parent": labels["penumbra.parent"],
        }
        shadows.append(shadow | found_at(engine.inspect_container(row["Id"]), p["address"]))
    return {"changed": False, "shadows": shadows}


def found_at(clone: dict, address: str | None) -> dict:
    """Where a found shadow serves, as its labels say how its parent did; nothing if it doesn't run."""
    labels = clone["Config"]["Labels"]
    number = labels["penumbra.port"].partition("/")[0]
    for bindings in (clone["NetworkSettings"]["Ports"] or {}).values():
        for binding in bindings or []:
            any_address = binding["HostIp"] in ("", "0.0.0.0")  # noqa: S104
            if ipaddress.ip_address(binding["HostIp"] or 0).version == 4:
                where = (address or labels["penumbra.address"]) if any_address else binding["HostIp"]
                return {"address": where, "port": int(binding["HostPort"])}
    addresses = [network["IPAddress"] for network in clone["NetworkSettings"]["Networks"].values()]
    return {"address": addresses[0], "port": int(number)} if addresses and addresses[0] else {}


def main() -> None:
    module = AnsibleModule(
        ARGUMENTS,
        required_if=[
            ("state", "present", ["name", "service", "parent", "shared_mounts", "port_range"]),
            ("state", "absent", ["name", "stop_timeout_s"]),
        ],
    )
    states = {"present": present, "absent": absent, "listed": listed}
    try:
        result = states[module.params["state"]](module.params)
    except RefusedError as refused:
        module.fail_json(msg=str(refused))
    except DockerException as error:
        module.fail_json(msg=f"the container engine refused: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
