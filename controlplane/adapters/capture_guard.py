# SPDX-License-Identifier: Apache-2.0
"""A process of its own that puts the steering program back in its place when a capture ends, however it does.

``python -m controlplane.adapters.capture_guard INSTANCE``: says "ready", waits for the end of its standard
input, which only the capture holds open, and puts back. The terminal's signals don't reach it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from controlplane.adapters import loader

READY = b"ready\n"
PUT_BACK_S = 30.0


class Guard:
    """Started before anything is replaced."""

    def __init__(self, instance: str, held: int) -> None:
        """:param held: a descriptor that is to stay open until the guard has ended: a lock."""
        waits, self._end = os.pipe()
        self._ready, says = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, instance],
                stdin=waits,
                stdout=says,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(held,),
            )
        except OSError:
            os.close(self._end)
            os.close(self._ready)
            raise
        finally:
            os.close(waits)
            os.close(says)

    def ready(self) -> bool:
        """Waits until it is; False: it has ended instead."""
        return os.read(self._ready, len(READY)) == READY

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> bool:
        """Has it put back; False: it did not, so somebody else must. To be called once."""
        os.close(self._end)
        os.close(self._ready)
        try:
            return self._process.wait(PUT_BACK_S) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    (instance,) = sys.argv[1:]
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read()
    loader.put_back(instance)


if __name__ == "__main__":
    main()
