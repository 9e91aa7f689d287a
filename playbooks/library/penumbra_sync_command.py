#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Runs the user's command that begins or ends a shadow's copy of its primary's data, at the access point.

It ends with the run that it belongs to; what it leaves in the background lives on. Of what it prints only the
last line of its complaint is handed back, when it fails.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule

PR_SET_PDEATHSIG = 1
RUN_LABEL = "PENUMBRA_RUN"
"""By it all processes of a run are ended."""

ARGUMENTS = {
    "command": {"type": "raw", "required": True},
    "instance": {"required": True},
    "shadow": {"required": True},
    "service": {"required": True},
    "primary": {"type": "dict", "required": True},
    "address": {"default": ""},
    "port": {"type": "int"},
}


class RefusedError(Exception):
    """It can't be done; the message says why and what to do."""


def environment(p: dict) -> dict[str, str]:
    """Ours, without what is Ansible's, and what it is about; an address that is not known is empty."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", RUN_LABEL))}
    return ours | {
        "PENUMBRA_INSTANCE": p["instance"],
        "PENUMBRA_SERVICE": p["service"],
        "PENUMBRA_SHADOW": p["shadow"],
        "PENUMBRA_SHADOW_ADDRESS": p["address"],
        "PENUMBRA_SHADOW_PORT": str(p["port"] or ""),
        "PENUMBRA_PRIMARY_ADDRESS": str(p["primary"]["address"]),
        "PENUMBRA_PRIMARY_PORT": str(p["primary"]["port"]),
    }


def argument_list(command: object) -> list[str]:
    """A list as it stands; a text is the shell's."""
    if isinstance(command, str) and command.strip():
        return ["/bin/sh", "-c", command]
    if isinstance(command, list) and command and all(isinstance(one, str) for one in command):
        return command
    raise RefusedError("start and stop are commands: a list of texts, or a text for the shell")


def run(p: dict) -> None:
    """Raises RefusedError if the command fails."""
    argv = argument_list(p["command"])
    libc = ctypes.CDLL(None)

    def end_with_us() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    # A file: of a pipe that something in the background holds open, no end would come.
    with tempfile.TemporaryFile() as complaint:
        try:
            code = subprocess.run(
                argv,
                env=environment(p),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaint,
                preexec_fn=end_with_us,
                check=False,
            ).returncode
        except OSError as error:
            raise RefusedError(f"{argv[0]} can't be run: {error}") from None
        if code:
            complaint.seek(0)
            lines = complaint.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RefusedError(f"{argv[0]} ended with {code}: {lines[-1][:300]}")


def main() -> None:
    module = AnsibleModule(ARGUMENTS)
    try:
        run(module.params)
    except RefusedError as refused:
        module.fail_json(msg=str(refused), refused=True)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
