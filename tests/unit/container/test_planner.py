"""What a container gets besides what its definition names."""

from __future__ import annotations

import dataclasses

import pytest
from piolet.base.errors import PioletError
from piolet.container.plan import ENTRY_PROGRAM, OF_JOB, SCRIPT, SHARED, SHELL, PlannedMount, PlannedSave
from piolet.container.planner import entry_program, make_plan
from piolet.environment.definition import Definition, Mount, Save, Startup
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image

BASE = Definition("x.toml", image=Image("a/b:1", "site", "a" * 64))


def planned(config: EnvironmentConfig, *own: Mount) -> dict[str, PlannedMount]:
    definition = dataclasses.replace(BASE, mounts=tuple(own))
    plan = make_plan(definition, "piolet:1.0", "/home/alice", config)
    return {mount.destination: mount for mount in plan.mounts}


def test_the_site_s_mounts_are_in_every_container_where_the_node_has_them() -> None:
    found = planned(EnvironmentConfig(mounts=("/opt/site", "/etc/prologs/one:/etc/prolog:ro")))
    assert found["/opt/site"] == PlannedMount("/opt/site", "/opt/site", optional=True)
    assert found["/etc/prolog"] == PlannedMount("/etc/prologs/one", "/etc/prolog", flags=("ro",), optional=True)
    assert found["/home/alice"].optional


def test_a_user_s_mount_comes_instead_of_the_site_s() -> None:
    found = planned(EnvironmentConfig(mounts=("/opt/site",)), Mount("/scratch/mine", "/opt/site"))
    assert found["/opt/site"].source == "/scratch/mine"


def test_the_home_is_left_out_where_the_site_wants_that() -> None:
    assert "/home/alice" not in planned(EnvironmentConfig(mount_home=False))


@pytest.mark.parametrize("flags", [(), ("ro",)])
def test_nothing_of_ours_is_mounted_in_what_the_user_mounts(flags: tuple[str, ...]) -> None:
    found = planned(EnvironmentConfig(), Mount("/d", "/etc", flags=flags), Mount("/scratch", "/home"))
    assert not [place for place in found if place.startswith(("/etc/", "/home/"))]
    assert found["/etc"].source == "/d"


def test_a_user_s_mount_beside_ours_leaves_ours() -> None:
    found = planned(EnvironmentConfig(), Mount("/d", "/etc/host"), Mount("/d", "/home/ali"))
    assert {"/etc/hosts", "/home/alice"} <= found.keys()


def test_the_home_as_the_definition_says() -> None:
    for site in (True, False):
        for said in (True, False, None):
            definition = dataclasses.replace(BASE, home=said)
            plan = make_plan(definition, "piolet:1.0", "/home/alice", EnvironmentConfig(mount_home=site))
            there = "/home/alice" in {mount.destination for mount in plan.mounts}
            assert there == (site if said is None else said)


def test_what_is_dropped() -> None:
    config = EnvironmentConfig(mounts=("/opt/site",))
    gone = ("/tmp", "/etc/hosts", "/home/alice", "/opt/site")
    definition = dataclasses.replace(BASE, dropped=gone)
    found = {mount.destination for mount in make_plan(definition, "piolet:1.0", "/home/alice", config).mounts}
    assert not found & set(gone)
    assert {"/proc", "/sys", "/dev", "/etc/resolv.conf"} <= found
    again = dataclasses.replace(definition, mounts=(Mount("/scratch", "/tmp"),))
    assert {"/tmp": "/scratch"}.items() <= {
        mount.destination: mount.source for mount in make_plan(again, "piolet:1.0", None, config).mounts
    }.items()


def test_the_site_s_mounts_stay_below_a_user_s() -> None:
    found = planned(EnvironmentConfig(mounts=("/etc/prolog",)), Mount("/d", "/etc"))
    assert found["/etc/prolog"].optional


def test_root_of_a_container_comes_by_the_entry_program() -> None:
    plan = make_plan(dataclasses.replace(BASE, remap_root=True), "piolet:1.0", None, EnvironmentConfig())
    assert plan.remapped and ENTRY_PROGRAM in [mount.destination for mount in plan.mounts]
    plain = make_plan(BASE, "piolet:1.0", None, EnvironmentConfig())
    assert not plain.remapped and ENTRY_PROGRAM not in [mount.destination for mount in plain.mounts]


def test_what_is_not_asked_for_costs_nothing() -> None:
    plan = make_plan(BASE, "piolet:1.0", "/home/alice", EnvironmentConfig())
    assert (plan.entrypoint, plan.shell, plan.save, plan.foreign) == ((), False, None, False)
    assert not any(mount.destination.startswith("/run/piolet") for mount in plan.mounts)
    assert not entry_program(BASE)


def test_what_stands_around_the_tasks() -> None:
    wanted = dataclasses.replace(
        BASE, entrypoint=("/own",), startup=Startup(("make",), "job", 5.0), save=Save(file="/x.sqsh", env={"A": "b"})
    )
    plan = make_plan(wanted, "piolet:node.1:7.0", "/home/alice", EnvironmentConfig(), user="alice")
    places = {mount.destination: mount for mount in plan.mounts}
    assert plan.entrypoint == (SHELL, SCRIPT, "/own") and plan.shell and plan.foreign and entry_program(wanted)
    assert "make" in places[SCRIPT].content and places[SHARED].kind == "tmpfs"
    assert places[OF_JOB] == PlannedMount("/home/alice/.cache/piolet/startup", OF_JOB, "made")
    assert plan.save == PlannedSave("7.0", "/x.sqsh", home="/home/alice", user="alice", env=("A=b",))


def test_commands_per_job_need_a_home() -> None:
    wanted = dataclasses.replace(BASE, startup=Startup(("make",), "job", 5.0))
    with pytest.raises(PioletError, match="needs a home"):
        make_plan(wanted, "piolet:1.0", None, EnvironmentConfig())
