"""A private cluster for the benchmarks, and its steps as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USER = "alice"
STEP_TIMEOUT_S = 120


class Cluster:
    """A running cluster in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        text = (directory / "env.sh").read_text("utf-8")
        exported = dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", text, re.MULTILINE))
        self.registry = exported["REGISTRY"]
        self.demo_image = exported["DEMO_IMAGE"]

    def run(self, *command: str, user: str = USER) -> str:
        """Run a command as a user of the cluster; return its output. Raises CalledProcessError."""
        done = subprocess.run(
            [str(self.directory / "as"), user, *command],
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
            cwd=pwd.getpwnam(user).pw_dir,
            check=False,
        )
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return done.stdout

    def tool(self, *arguments: str) -> None:
        """Call the cluster tool."""
        call_tool(*arguments, "--dir", str(self.directory))

    def set_node_option(self, section: str, name: str, value: str) -> None:
        """Set an option in a section of piolet.toml, and restart node1's pioletd."""
        path = self.directory / "etc" / "piolet.toml"
        lines = [text for text in path.read_text("utf-8").splitlines() if not text.startswith(f"{name} =")]
        lines.insert(lines.index(f"[{section}]") + 1, f"{name} = {value}")
        path.write_text("\n".join(lines) + "\n", "utf-8")
        self.tool("stop-pioletd", "node1")
        self.tool("start-pioletd", "node1")

    def forget_images(self) -> None:
        """Remove every image from the site's store, as root may."""
        config = str(self.directory / "etc" / "piolet.toml")
        piolet = [str(ROOT / "build" / "venv" / "bin" / "piolet"), "--config", config, "image"]
        subprocess.run([*piolet, "prune", "--older-than", "0s"], check=True, capture_output=True, timeout=60)

    def log(self, node: str) -> str:
        """Return the log of a node's pioletd."""
        return (self.directory / "log" / f"pioletd-{node}.log").read_text("utf-8", "replace")

    @contextlib.contextmanager
    def without_plugins(self) -> Iterator[tuple[Path, Path]]:
        """Yield the directory with the plugins' lines of plugstack.conf, and where to move it to take them out."""
        here = self.directory / "etc" / "plugstack.conf.d"
        aside = here.with_suffix(".aside")
        try:
            yield here, aside
        finally:
            if aside.exists():
                aside.rename(here)


def call_tool(*arguments: str) -> None:
    """Call tools.cluster, quietly unless it fails."""
    command = [sys.executable, "-m", "tools.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


@contextlib.contextmanager
def started(nodes: int) -> Iterator[Cluster]:
    """Start a cluster of its own for the benchmarks, and end it afterwards."""
    directory = ROOT / "build" / "bench-cluster"
    call_tool("down", "--dir", str(directory))
    call_tool("up", "--nodes", str(nodes), "--gpus", "2", "--dir", str(directory))
    try:
        yield Cluster(Path(os.path.realpath(directory)))
    finally:
        call_tool("down", "--dir", str(directory))
