# SPDX-License-Identifier: Apache-2.0
"""Stands in for ansible-playbook: has the server beside this file run it in a fork, and ends as that does.

Copied, made executable, into the server's folder; so it imports nothing of ours, and little at all, for it is
started for each run. Where no server takes the run, it becomes the ansible-playbook that is installed.
"""

import array
import os
import socket
import sys
from collections.abc import Sequence

TAKEN = b"+"
"""Said by the server when it begins: from then on nobody else may."""


def run(folder: str, arguments: Sequence[bytes]) -> int | None:
    """The run's exit status; None: no server has taken it."""
    mask = os.umask(0o77)
    os.umask(mask)
    environment = [name + b"=" + value for name, value in os.environb.items()]
    parts = [os.getcwdb(), b"%o" % mask, b"%d" % len(arguments), *arguments, *environment]  # noqa: PTH109
    asked = b"\0".join(parts)
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            os.chdir(folder)  # a socket's path may have 107 bytes, a folder's more
            server.connect("socket")
            files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
            server.sendmsg([b"%d\n" % len(asked)], [files])
            server.sendall(asked)
            taken = server.recv(1)
            status = b"".join(iter(lambda: server.recv(64), b"")) if taken == TAKEN else b""
    except OSError:
        taken = b""
    finally:
        os.fchdir(here)
    if taken != TAKEN:
        return None
    if not status:
        sys.stderr.write("ERROR: the server that ran this playbook has ended\n")
        return 1
    return int(status)


def main() -> None:
    folder, plain = os.path.split(sys.argv[0])[0], os.environ["PENUMBRA_PLAIN_PLAYBOOK"]
    status = run(folder, [os.fsencode(one) for one in sys.argv[1:]])
    if status is None:
        os.execv(plain, [plain, *sys.argv[1:]])  # noqa: S606
    # As a process that a signal ended is seen by a shell.
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
