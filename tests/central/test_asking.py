"""What staff and users are told."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.central import ALICE, BIN, CENTRAL, Cluster, cluster, event, send
from tests.support.waiting import wait_until

BOB = 61306
GPU = "gpu:GPU-1"


def fill(machines: Cluster) -> None:
    """Have a GPU be lost, and tasks of three users, two users and one end."""
    records = [
        event("node1", 1),
        event("node1", 2, "gpu.lost", "kernel", subject=GPU, severity="fatal", body={"pci": "x"}),
    ]
    for uid in (ALICE, BOB, 61307):
        outcome = {"task": 0, "signal": 11, "why": "signal", "tasks": 1}
        records.append(
            event("node1", len(records) + 1, "step.outcome", "user", uid=uid, job=uid, step="0", body=outcome)
        )
    for uid in (ALICE, BOB):
        verdict = {"eval": "gemm", "state": "pass"}
        records.append(
            event("node1", len(records) + 1, "vet.verdict", "user", uid=uid, job=uid, step="0", body=verdict)
        )
    records.append(event("node1", len(records) + 1, "vet.decision", "user", uid=BOB, job=7, body={"excluded": []}))
    assert "have" in send(machines, "node1", records)
    wait_until(lambda: machines.ask(0, "GET", "/v1/status").get("cases") == 1, what="a case")


@pytest.fixture(scope="module")
def open_site() -> Iterator[Cluster]:
    """A service whose site hides nothing."""
    with cluster(1) as made:
        made.more |= {"private": "false", "prometheus": "true"}
        made.start(program=without_slurm(made))
        fill(made)
        yield made


@pytest.fixture(scope="module")
def private_site() -> Iterator[Cluster]:
    """A service whose site hides what is of few users."""
    with cluster(1) as made:
        made.more["private"] = "true"
        made.start()
        fill(made)
        yield made


def without_slurm(machines: Cluster) -> list[str]:
    """Return the service with a scontrol that knows no PrivateData."""
    place = machines.top / "bin"
    place.mkdir()
    (place / "scontrol").write_text("#!/bin/sh\necho 'ClusterName = alps'\necho 'PrivateData = none'\n")
    (place / "scontrol").chmod(0o755)
    return ["/usr/bin/env", f"PATH={place}:/usr/bin:/bin", str(BIN / "piolet-central")]


def test_staff_sees_everything(open_site: Cluster, private_site: Cluster) -> None:
    for machines in (open_site, private_site):
        said = machines.ask(0, "GET", "/v1/node?name=node1")
        assert len(said["records"]) == 8 and len(said["cases"]) == 1
        assert said["counts"]["step.outcome"] == {"records": 3, "users": 3}


def test_a_user_sees_no_records_of_others(open_site: Cluster) -> None:
    said = open_site.ask(ALICE, "GET", "/v1/node?name=node1")
    assert {one.get("uid") for one in said["records"]} == {None, ALICE}
    assert {one["kind"] for one in said["records"] if "uid" not in one} == {"node.heartbeat", "gpu.lost"}
    assert said["counts"]["vet.decision"] == {"records": 1, "users": 1}
    assert "notes" not in said and "gaps" not in said


def test_numbers_of_few_users_are_hidden(private_site: Cluster) -> None:
    said = private_site.ask(ALICE, "GET", "/v1/node?name=node1")
    assert set(said["counts"]) == {"node.heartbeat", "gpu.lost", "step.outcome"}
    assert set(private_site.ask(BOB, "GET", "/v1/node?name=node1")["counts"]) >= {"vet.decision"}, "his own"
    assert len(said["cases"]) == 1, "what the kernel said of a node is nobody's secret"


def test_a_case_is_explained(open_site: Cluster) -> None:
    (node,) = open_site.ask(ALICE, "GET", "/v1/offenders")["nodes"]
    case = node["cases"][0]["case"]
    said = open_site.ask(ALICE, "GET", f"/v1/case?id={case}")
    assert said["records"][0]["kind"] == "gpu.lost" and any(
        "in shadow nothing is done" in line for line in said["lines"]
    )
    assert "there is no case" in open_site.ask(ALICE, "GET", "/v1/case?id=ffffffffffffffff")["error"]


def test_only_staff_writes(open_site: Cluster) -> None:
    refused = open_site.ask(ALICE, "POST", "/v1/note", node="node1", text="x")
    assert refused["status"] == 403
    assert open_site.ask(0, "POST", "/v1/note", node="node1", text="changed the riser")["noted"]
    assert "no node" in open_site.ask(0, "POST", "/v1/note", text="x")["error"]
    said = open_site.ask(0, "GET", "/v1/node?name=node1")
    assert [one["text"] for one in said["notes"]] == ["changed the riser"]


@pytest.mark.parametrize(
    ("target", "status"), [("/v1/nothing", 404), ("/v1/node?name=nodex", 400), ("/v1/node?name=node1&seconds=nan", 400)]
)
def test_what_cannot_be_answered(open_site: Cluster, target: str, status: int) -> None:
    assert open_site.ask(ALICE, "GET", target)["status"] == status


def run(machines: Cluster, uid: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `piolet central` as a user."""
    config = machines.config(machines.sockets[0], "user")
    return subprocess.run(
        [str(BIN / "piolet"), "--config", str(config), "central", *words], capture_output=True, text=True, user=uid,
        group=uid, extra_groups=(), timeout=60, cwd="/",
    )  # fmt: skip


def test_the_commands(open_site: Cluster) -> None:
    done = run(open_site, 0, "status")
    assert done.returncode == 0 and "8 records of 1 node" in done.stdout and "1 open case" in done.stdout
    assert "case " in (shown := run(open_site, ALICE, "node", "node1").stdout) and "of 3 users" in shown
    lines = run(open_site, ALICE, "offenders").stdout.splitlines()
    case = lines[0].split()[0]
    assert "gpu.lost" in run(open_site, ALICE, "explain", case).stdout
    assert run(open_site, 0, "ack", case, "spare ordered").stdout == "written down\n"
    assert "spare ordered" in run(open_site, 0, "explain", case).stdout
    assert json.loads(run(open_site, ALICE, "node", "node1", "--json").stdout)["node"] == "node1"
    refused = run(open_site, ALICE, "ack", case)
    assert refused.returncode == 1 and "only staff" in refused.stderr and "hint:" in refused.stderr


def test_spares_without_the_services_packages(open_site: Cluster) -> None:
    """A user asks from a login node, which has none of them, and may not read the store."""
    config = open_site.config(open_site.sockets[0], "user")
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('cel', 'sqlalchemy', 'alembic')))\n"
        "from piolet.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", str(config), "central", "spares", "64", "24"], capture_output=True,
        text=True, user=ALICE, group=ALICE, extra_groups=(), timeout=60, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "too little is known: 0 node-hours of 90 days\n"), done.stderr


def test_a_service_that_is_away() -> None:
    with cluster(1) as machines:
        done = run(machines, ALICE, "status")
    assert done.returncode == 1 and "does not answer" in done.stderr and "Traceback" not in done.stderr


def test_a_process_of_its_machine_needs_no_munge(open_site: Cluster) -> None:
    open_site.state.chmod(0o711)
    said = open_site.as_user(ALICE, HERE, f"unix:{open_site.state}/central.sock")
    assert {one.get("uid") for one in said["records"]} == {None, ALICE}


HERE = """
import json, sys
from piolet.transport.asking import Asker, Peer
print(json.dumps(Asker(Peer(sys.argv[1], 0)).ask("GET", "/v1/node?name=node1").said))
"""


def test_an_account_that_has_another_number_here(open_site: Cluster) -> None:
    """What is signed for that number the service cannot read, and it signs nothing for it: the hint says both."""
    config = open_site.config(open_site.sockets[0], "user")
    other = config.with_name("other-number.toml")
    other.write_text(config.read_text().replace(f'account = "{CENTRAL}"', 'account = "61399"'))
    done = subprocess.run(
        [str(BIN / "piolet"), "--config", str(other), "central", "status"], capture_output=True, text=True, user=ALICE,
        group=ALICE, extra_groups=(), timeout=60, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1 and "signs nothing (status 401)" in done.stderr
    assert "has its account there the number 61399, as here" in done.stderr


def figures(machines: Cluster) -> dict[str, float]:
    """Return what Prometheus reads."""
    with urllib.request.urlopen(f"{machines.url}/metrics", timeout=20) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_prometheus_is_told(open_site: Cluster, private_site: Cluster) -> None:
    """Where the site wants it: what came, what had come before, what is refused, and whether rules judge."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        figures(private_site)
    before = figures(open_site)
    epoch = "00000000000000d9"
    send(open_site, "node1", [event("node1", seq, epoch=epoch) for seq in (1, 2)])
    wrong = event("node1", 3, "gpu.lost", "user", epoch=epoch)
    send(open_site, "node1", [event("node1", 2, epoch=epoch), wrong])
    assert send(open_site, "node1", [event("node1", 4, epoch=epoch)], uid=ALICE)["status"] == 403
    wait_until(lambda: open_site.ask(0, "GET", "/v1/status")["caught_up"], what="the rules")
    after = figures(open_site)
    more = {name: value - before.get(name, 0.0) for name, value in after.items() if name.startswith("piolet_central_")}
    counts = {
        "records_total": 2, "batches_total": 2, "repeated_records_total": 1, "refused_records_total": 1,
        'refused_requests_total{status="403"}': 1,
    }  # fmt: skip
    assert {name: more[f"piolet_central_{name}"] for name in counts} == counts
    assert after["piolet_central_judging"] == 1 and 0 <= after["piolet_central_judge_delay_seconds"] < 60
