"""Commands in Slurm's place that print what was recorded, and `piolet vet gate` as the plugin calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piolet.api import EITHER, PASS, Verdict
from piolet.vet.runner import parts, records

NODES = ["node1", "node2", "node3", "node4"]
PROTOCOL = "name: p\nbudget: 1s\nevals:\n- type: limits\n"
SRUN = """#!/bin/sh
case "$*" in *" decision")
    { echo "$*"; printf '%s' "$SLURM_PIOLET_VET"; } > "$LOG.decision.new"; mv "$LOG.decision.new" "$LOG.decision"
    test -e "$RECORDED.untold" && exec sleep 20
    exit 0;;
esac
printf '%s\\n' "$*" >> "$LOG"
printf '%s' "$SLURM_PIOLET_VET" > "$LOG.plan"
env > "$LOG.env"
cat "$RECORDED.err" >&2
cat "$RECORDED"
test -e "$RECORDED.hang" && exec sleep 600
exit 0
"""
SCONTROL = (
    '#!/bin/sh\necho "JobId=$4 StartTime=2026-01-01T10:00:00 ReqNodeList=(null) NodeList=node[1-4] BatchHost=node1"\n'
)
SCANCEL = '#!/bin/sh\necho "scancel $*" >> "$LOG"\n'


def verdict(node: str, outcome: str = PASS, reason: str = "", whose: str = EITHER, **details: Any) -> bytes:
    value = records.record(node, "limits", "limits", Verdict(outcome, reason, details=details, whose=whose), 0.01)
    return parts.split(records.encode("verdict", value._asdict()))


def told(node: str, outcome: str = PASS, reason: str = "", whose: str = EITHER, **details: Any) -> bytes:
    """Return what srun prints of a node that tells everything."""
    hello = records.encode("hello", {"node": node, "where": "host", "evals": 1})
    end = records.encode("end", {"node": node, "where": "host", "evals": 1})
    return labelled(node, hello + verdict(node, outcome, reason, whose, **details) + end)


def labelled(node: str, text: bytes) -> bytes:
    label = f"{NODES.index(node)}: ".encode()
    return b"".join(label + line + b"\n" for line in text.splitlines())


@dataclass
class Slurm:
    """A directory with the commands, and the files that steer them."""

    directory: Path

    def __post_init__(self) -> None:
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o755)
        (self.directory / "p.yaml").write_text(PROTOCOL)
        (self.directory / "piolet.toml").write_text('[node]\nvet_program = "/x/vet-task"\nvet_socket = "/x/vet.sock"\n')
        self.record(b"".join(map(told, NODES)))

    def record(self, output: bytes, errors: str = "", hang: bool = False) -> None:
        (self.directory / "recorded").write_bytes(output)
        (self.directory / "recorded.err").write_text(errors)
        (self.directory / "recorded.hang").unlink(missing_ok=True)
        if hang:
            (self.directory / "recorded.hang").touch()

    @property
    def result(self) -> Path:
        """The result of job 7, where results of a user's jobs are kept."""
        return next(self.directory.rglob("vet-7.json"), self.directory / "none")

    @property
    def calls(self) -> list[str]:
        log = self.directory / "log"
        return log.read_text().splitlines() if log.exists() else []

    def gate(
        self, words: str = "srun -N3 app", request: str = "p.yaml", stage: str = "step", **environ: str
    ) -> tuple[int, list[str], str]:
        """Return the exit status, the words that were handed back, and what was said."""
        process = self.start(words, request, stage, **environ)
        out, err = process.communicate(timeout=60)
        assert out == ""
        assert "Traceback" not in err
        return process.returncode, (self.directory / "result").read_text().split("\0")[:-1], err

    def start(self, words: str, request: str, stage: str, **environ: str) -> subprocess.Popen[str]:
        """Start the command; its own process is in the file `result.pid`."""
        where = str(self.directory)
        own = {"PATH": f"{where}:/usr/bin:/bin", "HOME": where, "LOG": f"{where}/log", "RECORDED": f"{where}/recorded"}
        own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if stage == "step":
            own |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NTASKS": "16"}
        command = [sys.executable, "-m", "piolet.cli.main", "--config", "piolet.toml", "vet", "gate"]
        command += ["--stage", stage, "--job", "7", "--result-fd", "3", "--", request, *words.split()]
        # The plugin's srun is the gate's parent; here it is a shell that has, or has not, been started in a job.
        script = 'exec 3>"$RESULT"; "$@" & echo $! >"$RESULT.pid"; wait $!'
        own["RESULT"] = f"{where}/result"
        return subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *command], env=own | environ, cwd=where, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
