"""The script around a step's tasks, run by the shells that images have, as tasks of nodes that share directories."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from piolet.container import around
from piolet.container.plan import OF_JOB, SHARED
from piolet.environment.definition import Save, Startup

from tests.support.waiting import PATIENCE, wait_until

SHELLS = [words for words in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(words[0])]
SAVE = Save(file="/x.sqsh")


class Nodes:
    """Nodes whose containers have the script; `start` begins a task of one."""

    def __init__(self, room: Path, shell: list[str]) -> None:
        self.room = room
        self.shell = shell
        self.text = ""

    def shared(self, node: int) -> Path:
        return self.room / f"shared{node}"

    def write(self, startup: Startup | None, save: Save | None = None) -> None:
        self.text = around.script(startup, save)

    def start(self, *command: str, node: int = 0, task: int = 0, tasks: int = 1, **more: str) -> subprocess.Popen[str]:
        self.shared(node).mkdir(exist_ok=True)
        if not (self.room / "job").exists():
            (self.room / "job").mkdir()
        text = self.text.replace(SHARED, str(self.shared(node))).replace(OF_JOB, str(self.room / "job"))
        script = self.room / f"around{node}"
        if not script.exists() or script.read_text() != text:  # a shell reads it as it goes on
            script.write_text(text)
        environment = {
            "PATH": os.environ["PATH"],
            "SLURMD_NODENAME": f"n{node}",
            "SLURM_NODEID": str(node),
            "SLURM_LOCALID": str(task),
            "SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x2),1",
            "SLURM_JOB_ID": "5",
            "SLURM_STEP_ID": "0",
            "ROOM": str(self.room),
            **more,
        }
        return subprocess.Popen(
            [*self.shell, str(script), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def run(self, *command: str, **more: object) -> tuple[int, str, str]:
        process = self.start(*command, **more)  # type: ignore[arg-type]
        out, err = process.communicate(timeout=30 * PATIENCE)
        return process.returncode, out, err


@pytest.fixture(params=SHELLS, ids=lambda words: words[0])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Nodes:
    return Nodes(tmp_path, request.param)


def startup(*commands: str, per: str = "node", seconds: float = 20) -> Startup:
    return Startup(commands, per, seconds)


def test_without_both_there_is_no_script() -> None:
    assert around.script(None, None) == ""


def test_commands_come_before_the_task_with_its_variables(nodes: Nodes) -> None:
    nodes.write(startup('echo "it\'s $MINE"', "echo two >&2"))
    assert nodes.run("sh", "-c", "echo task; exit 4", MINE="so") == (4, "task\n", "it's so\ntwo\n")


def test_the_task_has_its_arguments_and_input_as_they_are(nodes: Nodes) -> None:
    nodes.write(startup("true"), SAVE)
    code, out, _ = nodes.run("printf", "%s|", "a b", "", "*", "$x", "-n")
    assert (code, out) == (0, "a b||*|$x|-n|")


def test_variables_of_the_script_are_not_the_task_s(nodes: Nodes) -> None:
    nodes.write(startup("true"))
    _, out, _ = nodes.run("env")
    assert "_piolet" not in out


def test_the_first_failure_ends_it_and_is_told_once(nodes: Nodes) -> None:
    nodes.write(startup("echo one", "echo what; exit 7", "echo three"))
    tasks = [nodes.start("touch", str(nodes.room / "ran"), task=task, tasks=3) for task in range(3)]
    said = [task.communicate(timeout=30 * PATIENCE) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1, 1]
    text = "".join(out + err for out, err in said)
    assert text.count("one\n") == text.count("error:") == 1 and "three" not in text.replace("echo three", "")
    assert "piolet: error: node n0: [startup] failed: command 2 echo what; exit 7, ended with status 7\nhint: " in text
    assert not (nodes.room / "ran").exists()


def test_what_a_node_s_commands_say_is_shown_of_the_first_and_where_they_fail(nodes: Nodes) -> None:
    nodes.write(startup('echo "on $SLURM_NODEID"; [ "$SLURM_NODEID" != 2 ]'))
    assert nodes.run("true")[2] == "on 0\n"
    assert nodes.run("true", node=1)[2] == ""
    code, _, err = nodes.run("true", node=2)
    assert code == 1 and err.startswith("on 2\n") and "node n2: [startup] failed" in err


def test_all_tasks_of_a_node_wait_for_one(nodes: Nodes) -> None:
    nodes.write(startup("sleep 0.3; echo x >>$ROOM/count"))
    tasks = [nodes.start("cat", str(nodes.room / "count"), task=task, tasks=4) for task in range(4)]
    assert [task.communicate(timeout=30 * PATIENCE)[0] for task in tasks] == ["x\n"] * 4


def test_too_late(nodes: Nodes) -> None:
    nodes.write(startup("sleep 77 & sleep 66", seconds=1))
    began = time.monotonic()
    code, _, err = nodes.run("true")
    # What was started holds the terminal no longer: its end has come.
    assert time.monotonic() - began < 30 * PATIENCE
    assert code == 1 and "[startup] did not end within 1 s\nhint: raise its timeout" in err


def test_nothing_is_run_twice_in_a_job(nodes: Nodes) -> None:
    nodes.write(startup("sleep 0.2; echo x >>$ROOM/count", per="job"))
    tasks = [nodes.start("true", node=node, task=task, tasks=2) for node in range(2) for task in range(2)]
    assert [task.wait(30 * PATIENCE) for task in tasks] == [0] * 4
    assert nodes.run("true", SLURM_STEP_ID="1")[0] == 0
    assert (nodes.room / "count").read_text() == "x\n"
    assert nodes.run("true", SLURM_RESTART_COUNT="1")[0] == 0
    assert (nodes.room / "count").read_text() == "x\nx\n"


def test_other_nodes_are_told_of_a_failure_in_the_job(nodes: Nodes) -> None:
    nodes.write(startup("sleep 0.5; false", per="job"))
    first = nodes.start("true")
    wait_until(lambda: any((nodes.room / "job").glob("*/begun")))
    code, _, err = nodes.run("true", node=1)
    assert code == 1 and "node n1: [startup] of this job failed, or did not end in time" in err
    assert first.wait(30 * PATIENCE) == 1


def test_what_failed_in_a_step_is_tried_again_by_the_next(nodes: Nodes) -> None:
    nodes.write(startup("test -e $ROOM/mended", per="job"))
    assert nodes.run("true")[0] == 1
    assert nodes.run("true", node=1)[0] == 1  # of the same step: no second try
    (nodes.room / "mended").touch()
    assert nodes.run("true", SLURM_STEP_ID="1")[0] == 0


def test_other_commands_in_a_job_are_another_matter(nodes: Nodes) -> None:
    for text in ("echo a >>$ROOM/count", "echo b >>$ROOM/count"):
        nodes.write(startup(text, per="job"))
        assert nodes.run("true")[0] == 0
    assert (nodes.room / "count").read_text() == "a\nb\n"


def test_a_home_that_cannot_be_written_is_told(nodes: Nodes) -> None:
    nodes.write(startup("true", per="job"))
    (nodes.room / "job").touch()
    code, _, err = nodes.run("true")
    assert code == 1 and "[startup] cannot begin" in err and "cannot be written to" in err


class Kept:
    """A keeper beside node 0, which answers once it is asked."""

    def __init__(self, nodes: Nodes, answer: str | None = "piolet: it is saved\n") -> None:
        self.folder = nodes.shared(0)
        self.folder.mkdir()
        os.mkfifo(self.folder / "ask")
        self.asked = 0
        self.process = subprocess.Popen(["sleep", "100"])
        (self.folder / "keeper").write_text(f"{self.process.pid}\n")
        # As the real one: open before anybody knows of it, or what is said before would be lost.
        ask = open(self.folder / "ask", "r+b", buffering=0)  # noqa: SIM115 - the thread closes it
        self.thread = threading.Thread(target=self.serve, args=(ask, answer), daemon=True)
        self.thread.start()

    def serve(self, ask: IO[bytes], answer: str | None) -> None:
        with ask:
            ask.read(1)
            self.asked += 1
            if answer is None:
                self.process.kill()
                self.process.wait()
                return
            (self.folder / ".answer").write_text(answer)
            (self.folder / ".answer").rename(self.folder / "answer")


@pytest.fixture
def kept(nodes: Nodes) -> Iterator[Kept]:
    nodes.write(None, SAVE)
    made = Kept(nodes)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -TERM $$", -15), ("true", 0), ("exit 255", 255)])
def test_saving_does_not_change_the_status(nodes: Nodes, kept: Kept, command: str, code: int) -> None:
    found, out, err = nodes.run("sh", "-c", f"echo x; {command}")
    assert (found, out) == (code, "x\n") and err.endswith("piolet: it is saved\n") and kept.asked == 1


def test_the_last_task_has_it_saved(nodes: Nodes, kept: Kept) -> None:
    first = nodes.run("true", task=0, tasks=2)
    assert first == (0, "", "") and kept.asked == 0
    assert nodes.run("true", task=1, tasks=2) == (0, "", "piolet: it is saved\n")


def test_tasks_that_end_at_once_say_it_once(nodes: Nodes, kept: Kept) -> None:
    tasks = [nodes.start("sleep", "0.3", task=task, tasks=4) for task in range(4)]
    said = [task.communicate(timeout=30 * PATIENCE)[1] for task in tasks]
    assert "".join(said) == "piolet: it is saved\n" and kept.asked == 1


def test_other_nodes_do_not_save(nodes: Nodes, kept: Kept) -> None:
    assert nodes.run("true", node=1) == (0, "", "") and kept.asked == 0


def test_a_vetting_saves_nothing(nodes: Nodes, kept: Kept) -> None:
    assert nodes.run("true", SLURM_PIOLET_VETTING="1") == (0, "", "") and kept.asked == 0


def test_a_signal_to_the_step_is_outlasted(nodes: Nodes, kept: Kept) -> None:
    task = nodes.start("sh", "-c", f"trap 'echo bye; exit 5' TERM; touch {nodes.room}/up; while :; do sleep 0.1; done")
    wait_until(lambda: (nodes.room / "up").exists())
    # Slurm gives it to every process of the step.
    below = subprocess.run(["pgrep", "-P", str(task.pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in (task.pid, *map(int, below)):
        os.kill(pid, signal.SIGTERM)
    out, err = task.communicate(timeout=30 * PATIENCE)
    assert (task.returncode, out) == (5, "bye\n") and err.endswith("piolet: it is saved\n")


def test_a_keeper_that_is_gone_is_told_and_not_waited_for(nodes: Nodes) -> None:
    nodes.write(None, SAVE)
    for answer in (None, None):
        made = Kept(nodes, answer)
        code, _, err = nodes.run("sh", "-c", "exit 6")
        assert code == 6
        assert err == "piolet: warning: node n0: the container was not saved: the process that does it was ended\n"
        shutil.rmtree(made.folder)
        nodes.shared(0).mkdir()
        code, _, err = nodes.run("sh", "-c", "exit 6")  # there never was one
        assert code == 6 and "was not saved" in err
        shutil.rmtree(made.folder)


def test_a_keeper_that_has_answered_holds_up_no_late_task(nodes: Nodes) -> None:
    nodes.write(None, SAVE)
    kept = Kept(nodes)
    reader = os.open(kept.folder / "ask", os.O_RDWR)  # the first task's
    os.write(reader, b"end\n")
    kept.thread.join(10)
    os.close(reader)
    (kept.folder / "answer").unlink()
    threading.Timer(0.5, lambda: (kept.folder / "answer").write_text("late\n")).start()
    assert nodes.run("true") == (0, "", "late\n")  # nobody has the pipe open any more
    kept.process.kill()
    kept.process.wait()
