# SPDX-License-Identifier: Apache-2.0
"""What the kernel's verifier has to look at: a million instructions is the limit, of any kernel."""

from __future__ import annotations

from controlplane.adapters import libbpf
from tests.packet.rig import KERNEL, Rig

MOST = 250_000 if KERNEL >= (6, 18) else 500_000
"""It is 180 000 on Linux 6.18 and 447 000 on 6.1, with clang 14; other versions of clang may need more."""


def test_the_verifier_sees_few_instructions(rig: Rig) -> None:
    verified = libbpf.prog_info(rig.compiled.program_fd).verified
    print(f"{verified} instructions verified, {rig.compiled.instructions} in the program")
    assert rig.compiled.instructions <= verified <= MOST


def test_it_sees_few_of_the_program_that_answers(rig: Rig) -> None:
    found = libbpf.map_lookup(rig.compiled.maps["refusals"], bytes(4), 4)
    verified = libbpf.prog_info_by_id(int.from_bytes(found or b"", "little")).verified
    print(f"{verified} instructions verified")
    assert 0 < verified <= MOST // 2
