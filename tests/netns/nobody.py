# SPDX-License-Identifier: Apache-2.0
"""What to put before a command that is to run without root."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
SHOW = f"""
if ! {" ".join(AS_NOBODY)} test -r "$0/Makefile"; then
    mount --bind "$0" /mnt
    mount -t tmpfs -o mode=755 none "/$(echo "$0" | cut -d/ -f2)"
    mkdir -p "$0"
    mount --bind /mnt "$0"
fi
exec "$@"
"""
"""A checkout in a home that others may not enter is shown to them, in a mount namespace of its own."""
NOBODY = ["unshare", "--mount", "sh", "-ec", SHOW, str(ROOT), *AS_NOBODY]
