# SPDX-License-Identifier: Apache-2.0
"""What the kernel's verifier has to look at: a million instructions is the limit, of any kernel."""

from __future__ import annotations

from controlplane.adapters import libbpf
from tests.packet.rig import Rig

MOST = 400_000
"""Other versions of clang and of the verifier may need a multiple of what these do."""


def test_the_verifier_sees_few_instructions(rig: Rig) -> None:
    verified = libbpf.prog_info(rig.compiled.program_fd).verified
    print(f"{verified} instructions verified, {rig.compiled.instructions} in the program")
    assert rig.compiled.instructions <= verified <= MOST


def test_it_sees_few_of_the_program_that_answers(rig: Rig) -> None:
    found = libbpf.map_lookup(rig.compiled.maps["refusals"], bytes(4), 4)
    verified = libbpf.prog_info_by_id(int.from_bytes(found or b"", "little")).verified
    print(f"{verified} instructions verified")
    assert 0 < verified <= MOST // 2
