# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: in CI random examples are the same each time; at a desk they differ."""

import os
import signal

from hypothesis import settings

# Under nohup(1) every child would be deaf to it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("repeatable", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")
