# SPDX-License-Identifier: Apache-2.0
"""What a policy makes of recorded load, on a clock that is only counted."""
