"""Which hooks a definition asks for, and what becomes of one that does what it must not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from piolet.api import Entry, Library, Mount, Node, Notice, Step, TaskVariable, Variable
from piolet.base.errors import EnvironmentFileError, PioletError
from piolet.container.entries import collect
from piolet.environment.definition import Definition
from piolet.hooks import evaluate, wanted
from piolet.hooks.catalogue import OWN, Catalogue
from piolet.hooks.evaluate import Hooks
from piolet.hooks.facts import Facts
from piolet.hooks.settings import HooksConfig
from piolet.images.info import Image

STEP = Step(7, 1, 1000, 1000, "alice", "/home/alice")
ON = "com.hooks.{}.enabled"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a site's hooks are root's")


def site(tmp_path: Path, name: str, body: str) -> HooksConfig:
    directory = tmp_path / "hooks.d"
    directory.mkdir(exist_ok=True)
    text = "from piolet.api import *\nfrom piolet.api import Hook, Missing, Refused, Variable\n\n\nclass It(Hook):\n"
    text += f"    name = '{name}'\n    text = 'x'\n    options = {{'word': 'a word'}}\n\n"
    text += f"    def entries(self, asked, node, step):\n        {body}\n"
    (directory / f"{name}.py").write_text(text)
    return HooksConfig(str(directory))


def definition(annotations: dict[str, str], **more: object) -> Definition:
    return Definition("x", image=Image("a/b:1", "site", "a" * 64), annotations=annotations, **more)  # type: ignore[arg-type]


def extras(hooks: Hooks, asks: Definition, facts: Facts, step: Step) -> list[Entry]:
    wish = hooks.wish(asks)
    return [] if wish is None else hooks.extras(wish, facts, step)


def ask(config: HooksConfig, annotations: dict[str, str], node: Node | None = None) -> list[Entry]:
    hooks = Hooks(config, 0.2)
    return extras(hooks, definition(annotations), Facts(node or Node()), STEP)


def test_every_hook_of_ours_is_there_and_says_what_it_does() -> None:
    catalogue = Catalogue("/nowhere")
    for installed in catalogue.installed().values():
        kind = catalogue.load(installed)
        assert kind.name == installed.name
        assert kind.text and kind.source
    files = {path.stem for path in Path(evaluate.__file__).with_name("known").glob("[a-z]*.py")}
    assert files == set(OWN)


def test_what_annotations_ask_for() -> None:
    installed = Catalogue("/nowhere").installed()
    annotations = {
        ON.format("slurm"): "true",
        ON.format("dcgm"): "false",
        "com.hooks.aws_ofi_nccl.variant": "cuda12",
        "com.pyxis.pytorch_remap_vars": "true",
        "com.pyxis.other": "1",
        "com.sarus.mpi": "1",
        "com.hooks.none.required": "true",
        "com.hooks.gone.enabled": "false",
        "org.opencontainers.x": "y",
    }
    found = wanted.read(annotations, installed, ["cxi", "dcgm"])
    assert [one.hook.name for one in found.wanted] == ["cxi", "slurm", "pytorch_remap_vars"]
    assert found.unknown == ("com.pyxis.other", "com.sarus.mpi", "com.hooks.none")
    assert found.required == ("com.hooks.none",)
    assert found.idle == ("com.hooks.aws_ofi_nccl",)


def test_warnings_when_a_job_is_submitted() -> None:
    said = wanted.check(
        {"com.pyxis.other": "1", "com.hooks.none.enabled": "true", "com.hooks.ldcache.folders": "/x"}, {}, HooksConfig()
    )
    assert said == [
        "the annotation com.pyxis.other is not known here; ignored",
        "the hook com.hooks.none is not installed here; ignored",
        'com.hooks.ldcache has options but is not switched on: com.hooks.ldcache.enabled is not "true"',
    ]


@pytest.mark.parametrize(
    ("annotations", "message", "hint"),
    [
        ({"com.hooks.none.required": "true"}, "the hook com.hooks.none is required and not installed here", ""),
        ({"com.hooks.slrum.required": "true"}, "com.hooks.slrum is required", "did you mean com.hooks.slurm?"),
        ({"com.hooks.ldcache.folder": "/x"}, "com.hooks.ldcache has no option 'folder'", "did you mean 'folders'?"),
        ({"com.hooks.ldcache.folders": "x"}, "com.hooks.ldcache: 'x' is not an absolute path", "colons"),
        ({"com.hooks.aws_ofi_nccl.variant": "cuda11"}, "there is no variant 'cuda11'", "cuda12"),
        ({"com.hooks.netstack.name": "../x"}, "name is the name of a directory", ""),
    ],
)
def test_mistakes_when_a_job_is_submitted(annotations: dict[str, str], message: str, hint: str) -> None:
    name = next(iter(annotations)).rpartition(".")[0]
    with pytest.raises(EnvironmentFileError) as error:
        wanted.check({f"{name}.enabled": "true", **annotations}, {}, HooksConfig())
    assert message in error.value.message
    assert hint in (error.value.hint or "")


def test_a_site_s_hook_and_its_options(tmp_path: Path) -> None:
    config = site(tmp_path, "mine", "return [Variable('A', asked.options.get('word', step.user))]")
    assert ask(config, {ON.format("mine"): "true"}) == [Variable("A", "alice")]
    assert ask(config, {ON.format("mine"): "true", "com.hooks.mine.word": "b"}) == [Variable("A", "b")]
    assert ask(config, {ON.format("mine"): "false"}) == []


def test_a_file_that_has_changed_is_loaded_anew(tmp_path: Path) -> None:
    config = site(tmp_path, "mine", "return [Variable('A', '1')]")
    hooks = Hooks(config)
    asks = definition({ON.format("mine"): "true"})
    assert extras(hooks, asks, Facts(), STEP) == [Variable("A", "1")]
    site(tmp_path, "mine", "return [Variable('A', '22')]")
    assert extras(hooks, asks, Facts(), STEP) == [Variable("A", "22")]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("while True: pass", "took longer than 0.2 s"),
        ("import time; time.sleep(60)", "took longer than 0.2 s"),
        ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", "took longer than 0.2 s"),
        ("raise ValueError('no')", "the hook mine failed: ValueError: no"),
        ("raise SystemExit(3)", "the hook mine failed: SystemExit: 3"),
        ("return 5", "the hook mine failed: TypeError"),
        ("return [5]", "the hook com.hooks.mine returned what is no entry of a plan"),
        ("raise Missing('it is not here')", "the hook com.hooks.mine is left out: it is not here"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_hook_that_does_what_it_must_not(tmp_path: Path, body: str, why: str) -> None:
    config = site(tmp_path, "mine", body)
    began = time.monotonic()
    (notice,) = ask(config, {ON.format("mine"): "true"})
    assert time.monotonic() - began < 5
    assert isinstance(notice, Notice)
    assert why in notice.text
    with pytest.raises(PioletError):
        ask(config, {ON.format("mine"): "true", "com.hooks.mine.required": "true"})


def test_a_file_that_never_ends(tmp_path: Path) -> None:
    config = site(tmp_path, "mine", "return []")
    (tmp_path / "hooks.d" / "mine.py").write_text("while True: pass")
    (notice,) = ask(config, {ON.format("mine"): "true"})
    assert "took longer than 0.2 s" in str(notice)


def test_a_hook_that_is_late_three_times_is_not_asked_again(tmp_path: Path) -> None:
    hooks = Hooks(site(tmp_path, "mine", "while True: pass"), 0.05)
    asks = definition({ON.format("mine"): "true"})
    for _ in range(3):
        (notice,) = extras(hooks, asks, Facts(), STEP)
        assert "took longer" in str(notice)
    began = time.monotonic()
    (notice,) = extras(hooks, asks, Facts(), STEP)
    assert time.monotonic() - began < 0.04
    assert "is switched off: it has taken too long 3 times" in str(notice)


def test_a_timer_ends_what_it_is_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """It rings again while its first end is being dealt with, and is stopped only then."""

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)  # the timer rings five times
        return stop(*arguments)

    def catching() -> None:
        with contextlib.suppress(evaluate.TooLongError):
            time.sleep(1)
        time.sleep(1)

    before = signal.getsignal(signal.SIGALRM)
    stop = signal.setitimer
    monkeypatch.setattr(signal, "setitimer", lambda *a: slow(*a) if a[1] == 0 else stop(*a))
    for work in (catching, lambda: time.sleep(1)):
        for _ in range(10):
            with pytest.raises(evaluate.TooLongError):
                evaluate._timed(work, 0.01)
    assert evaluate._timed(lambda: 7, 0.01) == 7
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) == before


def test_a_hook_that_is_late_for_one_user_is_asked_for_others(tmp_path: Path) -> None:
    """What it does may hang on options, which are a user's."""
    hooks = Hooks(site(tmp_path, "mine", "while step.uid == 1000: pass\n        return []"), 0.05)
    asks = definition({ON.format("mine"): "true"})
    for _ in range(4):
        extras(hooks, asks, Facts(), STEP)
    assert extras(hooks, asks, Facts(), dataclasses.replace(STEP, uid=1001)) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.chmod(0o666), "can be written by others than root"),
        (lambda path: path.parent.chmod(0o777), "can be written by others than root"),
        (lambda path: os.chown(path, 65534, 0), "does not belong to root"),
        (lambda path: path.write_text("x ="), "cannot load the hook"),
        (lambda path: path.write_text("x = 1"), "must define one class that derives from piolet.api.Hook"),
        (lambda path: path.write_text("raise SystemExit"), "cannot load the hook"),
    ],
)
def test_a_file_that_is_not_loaded(tmp_path: Path, change, why: str) -> None:  # type: ignore[no-untyped-def]
    config = site(tmp_path, "mine", "return []")
    change(tmp_path / "hooks.d" / "mine.py")
    (notice,) = ask(config, {ON.format("mine"): "true"})
    assert why in str(notice)


def test_gpus_by_default_where_the_image_asks_and_the_node_has_some() -> None:
    from piolet.hooks.cdi import Devices

    there = Facts(devices=Devices({evaluate.ALL_GPUS: (Variable("A", "b"),)}))
    hooks = Hooks(HooksConfig("/nowhere"))
    asking = definition({}, set_env={"NVIDIA_VISIBLE_DEVICES": "all"})
    assert extras(hooks, asking, there, STEP) == [Variable("A", "b")]
    assert extras(hooks, asking, Facts(), STEP) == []
    assert hooks.wish(asking) is not None
    for value in ("void", "none", ""):
        assert hooks.wish(definition({}, set_env={"NVIDIA_VISIBLE_DEVICES": value})) is None
    assert Hooks(HooksConfig("/nowhere", nvidia="never")).wish(asking) is None


def test_what_entries_add_to_a_plan() -> None:
    entries: list[Entry] = [
        Variable("SET", "of the hook"),
        Variable("OVER", "of the hook", override=True),
        Variable("GONE", "of the hook"),
        Variable("NEW", "of the hook"),
        TaskVariable("RANK", "SLURM_PROCID", override=True),
        TaskVariable("ADDR", "SLURM_STEP_NODELIST", first_host=True),
        Notice("two\nlines\x1b[2J"),
        Mount("/a", "/b"),
        Library("lib.so", "/b/lib.so", last=True),
    ]
    found = collect(entries, {"SET": "mine", "OVER": "mine"}, ["GONE"], {})
    assert found.variables == {"OVER": "of the hook", "NEW": "of the hook"}
    assert found.tasks
    (mount, task) = found.mounts
    assert (mount.source, mount.destination, mount.flags) == ("/a", "/b", ("ro",))
    assert task.content == "=RANK=SLURM_PROCID\0~ADDR=SLURM_STEP_NODELIST\0!two lines [2J\0"
    assert found.libraries == (("lib.so", "/b/lib.so", True),)
    with pytest.raises(PioletError, match="is not an absolute one"):
        collect([Mount("/a", "/../b")], {}, (), {})
