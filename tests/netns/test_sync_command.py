# SPDX-License-Identifier: Apache-2.0
"""The user's own commands begin and end a shadow's copy, by the shipped playbooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters.ansible import AnsibleProvisioner
from tests.netns.test_provision_netns import PARENT, SHADOW, Site, original, provisioner, result_of, site

__all__ = ["original", "provisioner", "site"]

TELLS = 'echo "$0 $PENUMBRA_SHADOW $PENUMBRA_PRIMARY_ADDRESS $PENUMBRA_SHADOW_ADDRESS:$PENUMBRA_SHADOW_PORT"'


@pytest.mark.usefixtures("original")
def test_commands_are_run_when_the_shadow_is_there_and_before_it_goes(
    site: Site, provisioner: AnsibleProvisioner, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    sync = model.Sync(
        model.SyncDriver.COMMAND,
        max_lag_s=5.0,
        variables={
            "start": ["sh", "-c", f"{TELLS} >>{told}", "start"],
            "stop": f"test -e {tmp_path}/may || {{ echo not yet >&2; exit 1; }}; {TELLS} >>{told}",
            "lag": "echo 0",
        },
    )
    order = replace(site.order(fresh_directory={"options": []}), sync=sync)
    provisioner.provision(order)
    made = result_of(provisioner)
    assert (made.reason, made.address) == ("", SHADOW)

    provisioner.deprovision(order)
    assert "ended with 1: not yet" in result_of(provisioner).reason
    assert site.processes() == [], "it goes whatever comes of its copy"

    (tmp_path / "may").touch()
    provisioner.deprovision(order)
    assert result_of(provisioner).reason == ""
    assert told.read_text().splitlines() == [
        f"start web-1-s1 {PARENT} {SHADOW}:{made.port}",
        f"/bin/sh web-1-s1 {PARENT} :",
    ]
