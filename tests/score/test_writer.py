"""The writer: the user's process that takes samples from a pipe and leaves whole files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.dataset import Dataset, open_dataset
from piolet.samples.journal import open_for_writing
from piolet.score.summary import summarise

from tests.support.waiting import wait_until


def test_the_writer_is_the_user_and_finishes(simulate: Callable[..., Dataset], tmp_path: Path) -> None:
    """What goes through a pipe becomes the same data set."""
    from piolet.samples.writer import write
    from piolet.score.overview import summary_of

    data = simulate("gpu\nload matmul 100\n", 5)
    source = data.nodes[0].path
    process = subprocess.Popen(["/bin/cat", str(source)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    path = write(process.stdout.fileno(), str(tmp_path / "out"), "node", "1.0", 10**9, lambda: summary_of)
    process.stdout.close()
    process.wait()
    assert Path(path).name == "node.parquet"
    one, other = summarise(data), summarise(open_dataset(tmp_path / "out"))
    assert other.score.value == pytest.approx(one.score.value)
    shutil.copy(source, tmp_path / "node.journal")
    for run in "1.1", "1.0-r1":
        with pytest.raises(ScoreError, match="holds the data set of another step"):
            write(0, str(tmp_path), "node", run, 10**9, lambda: summary_of)
    for name in ("../x", "", ".."):
        with pytest.raises(ScoreError, match="cannot be the name"):
            write(0, str(tmp_path), name, "1.0", 10**9, lambda: summary_of)


def test_a_writer_makes_do_with_what_has_come(simulate: Callable[..., Dataset], tmp_path: Path) -> None:
    """When its sampler does not let go of the pipe: what is in it is written, and the next writer can go on."""
    whole = (simulate("gpu\nload matmul 10\n", 5).directory / "node.journal").read_bytes()
    read, write = os.pipe()
    os.write(write, whole[: len(whole) * 3 // 4])
    code = (
        "import sys; from piolet.samples.writer import write as w\nprint(w(int(sys.argv[1]), *sys.argv[2:], 1, None))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(read), str(tmp_path / "out"), "node", "1.0"],
        pass_fds=[read],
        stdout=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "out" / "node.journal"
    wait_until(lambda: path.exists() and path.stat().st_size > len(whole) // 3, what="what has come")
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=20)[0].strip() == str(path) and process.returncode == 0
    assert len(list(journal.read(str(path)))) > 3
    os.close(open_for_writing(str(path)))
    os.close(read)
    os.close(write)
