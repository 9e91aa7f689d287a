# SPDX-License-Identifier: Apache-2.0
"""Random frames between random changes, given to the program and to tests/reference_frames.py alike.

Hypothesis draws episodes: hundreds of actions, by chance and by what was before them. An action is a frame, a
change of what is installed, or time that passes. By themselves they depend on nothing, so of an episode that
fails those are left out that it fails without, and the rest is written down to be played again.
"""
