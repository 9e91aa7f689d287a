# SPDX-License-Identifier: Apache-2.0
"""Random frames between random changes, given to the program and to tests/reference_frames.py alike.

Hypothesis draws episodes: lists of numbers, a step each. A step becomes actions by its number and by what was
before it: a frame, a change of what is installed, or time that passes. Actions depend on nothing, so of an
episode that fails those are left out that it fails without, and the rest is written down to be played again.
"""
