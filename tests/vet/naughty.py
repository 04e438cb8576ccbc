"""Evals that do everything wrong."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from piolet.api import FAIL, INCONCLUSIVE, PASS, Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Fine(Eval):
    name = "fine"
    seconds: float = parameter(0.0, text="to take")
    mark: str = parameter("", text="a file that gets a line at the beginning and one at the end")

    def check(self, context: Context) -> Verdict:
        self._note("begin")
        time.sleep(self.seconds)
        self._note("end")
        return Verdict(PASS, details={"scratch": context.scratch, "remaining": context.remaining()})

    def _note(self, word: str) -> None:
        if self.mark:
            with open(self.mark, "a") as file:
                file.write(word + "\n")


class Hangs(Fine):
    def check(self, context: Context) -> Verdict:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"])
        while True:
            time.sleep(1000)


class Raises(Fine):
    def check(self, context: Context) -> Verdict:
        print("about to fail")
        raise ValueError("the second line\nis not shown")


class Exits(Fine):
    def check(self, context: Context) -> Verdict:
        sys.exit("good bye")


class Vanishes(Fine):
    def check(self, context: Context) -> Verdict:
        print("last words", file=sys.stderr)
        os._exit(7)


class Killed(Fine):
    def check(self, context: Context) -> Verdict:
        os.kill(os.getpid(), signal.SIGKILL)
        return Verdict(PASS)


class Crashes(Fine):
    def check(self, context: Context) -> Verdict:
        ctypes.string_at(0)
        return Verdict(PASS)


class ReturnsTrue(Fine):
    def check(self, context: Context) -> Verdict:
        return True  # type: ignore[return-value]


class Chatty(Fine):
    def check(self, context: Context) -> Verdict:
        print("x" * 1_000_000)
        sys.stdout.flush()
        return Verdict(PASS)


class Huge(Fine):
    def check(self, context: Context) -> Verdict:
        return Verdict(PASS, details={"x": "y" * 10_000_000})


class Wordy(Fine):
    def check(self, context: Context) -> Verdict:
        return Verdict(PASS, details={"x": "y" * 5000})


class Strange(Fine):
    def check(self, context: Context) -> Verdict:
        return Verdict(PASS, details={"x": float("nan"), "y": {1, 2}})


class LeavesAChild(Fine):
    def check(self, context: Context) -> Verdict:
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        return Verdict(PASS, details={"pid": child.pid})


class Forks(Fine):
    """Its child lives on, and holds everything open that it was given."""

    def check(self, context: Context) -> Verdict:
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
        return Verdict(PASS)


class ForksAndDies(Fine):
    def check(self, context: Context) -> Verdict:
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
        os._exit(7)


class ForksTwoAnswers(Fine):
    """Both processes come back from `check`, the child first."""

    def check(self, context: Context) -> Verdict:
        pid = os.fork()
        if pid == 0:
            return Verdict(PASS)
        os.waitpid(pid, 0)
        return Verdict(FAIL, "the parent says so")


class Shouts(Fine):
    def check(self, context: Context) -> Verdict:
        return Verdict(INCONCLUSIVE, "a\nleft out: node1: forged\r\x1b[2J\u2028" + "x" * 1_000_000, "m" * 100_000)


@dataclass(frozen=True)
class Rate(Eval):
    """A user's own measurement."""

    name = "rate"
    unit = "GB/s"
    better = "higher"
    effect = 0.3
    value: float = parameter(100.0, text="what it measures")

    def check(self, context: Context) -> Verdict:
        return Verdict(PASS, "", "rate", self.value)


class Undecided(Rate):
    better = ""


class Misspelt(Rate):
    better = "bigger"


class NoEval:
    pass
