"""The words of an srun command: its options, and where the application begins. Pure.

srun reads its words with getopt_long and stops at the first one that is no option; what follows is the
application's and is never looked at. It refuses an option whose form it does not know where that matters: without
it, an option's value and the application's name could not be told apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from piolet.base.errors import SlurmError

NONE, REQUIRED, OPTIONAL = 0, 1, 2

# From srun's manual, 22.05 to 25.11, and --interactive, which salloc adds. Options with neither mark need a value.
_FLAGS = (
    "contiguous disable-status exact external hold interactive label multi-prog no-allocate overcommit overlap "
    "oversubscribe preserve-env quiet quit-on-interrupt reboot share spread-job test-only unbuffered usage "
    "use-min-nodes verbose version"
)
_WITH_OPTIONAL = (
    "bcast compress exclusive get-user-env help immediate kill-on-bad-exit nice no-kill propagate pty resv-ports "
    "send-libs x11"
)
_WITH_VALUE = (
    "accel-bind account acctg-freq argv0 bb bbf bcast-exclude begin chdir cluster-constraint clusters comment "
    "consolidate-segments constraint container container-id core-spec cores-per-socket cpu-bind cpu-freq cpus-per-gpu "
    "cpus-per-task deadline debugger-test delay-boot dependency distribution epilog error exclude export export-file "
    "extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags "
    "het-group hint input job-name jobid licenses mail-type mail-user max-threads mcs-label mem mem-bind mem-per-cpu "
    "mem-per-gpu mincpus mpi msg-timeout network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu "
    "ntasks-per-node ntasks-per-socket ntasks-per-tres oom-kill-step open-mode output partition power prefer priority "
    "profile prolog qos relative reservation resources segment signal slurmd-debug sockets-per-node "
    "stepmgr switches task-epilog task-prolog thread-spec threads threads-per-core time time-min tmp "
    "treewidth tres-bind tres-per-task uid wait wckey"
)
_SHORT = {
    "A": "account", "b": "begin", "B": "extra-node-info", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "E": "preserve-env", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help",
    "i": "input", "I": "immediate", "J": "job-name", "k": "no-kill", "K": "kill-on-bad-exit", "l": "label",
    "L": "licenses", "m": "distribution", "M": "clusters", "n": "ntasks", "N": "nodes", "o": "output",
    "O": "overcommit", "p": "partition", "q": "qos", "Q": "quiet", "r": "relative", "s": "oversubscribe",
    "S": "core-spec", "t": "time", "T": "threads", "u": "unbuffered", "v": "verbose", "V": "version", "w": "nodelist",
    "W": "wait", "x": "exclude", "X": "disable-status", "Z": "no-allocate",
}  # fmt: skip
OWN: Mapping[str, int] = {
    **dict.fromkeys(_FLAGS.split(), NONE),
    **dict.fromkeys(_WITH_OPTIONAL.split(), OPTIONAL),
    **dict.fromkeys(_WITH_VALUE.split(), REQUIRED),
    "environment": REQUIRED,
    "score": OPTIONAL,
    "vet": REQUIRED,
}


@dataclass(frozen=True)
class Option:
    """An option by its long name, its value ('' without one), and the words that say it alone."""

    name: str
    value: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """A command: how srun was called, its options in order, and the rest, which is the application's."""

    program: str
    options: tuple[Option, ...]
    rest: tuple[str, ...]

    def value(self, name: str) -> str | None:
        """Return the value that counts, which is the last one, or None: the option is not there."""
        return next((option.value for option in reversed(self.options) if option.name == name), None)

    def without(self, *names: str) -> list[str]:
        """Return the words of all options but these."""
        return [word for option in self.options if option.name not in names for word in option.words]


def parse(words: Sequence[str], plugins: Mapping[str, int] | None = None) -> Words:
    """Return the command in `words`; `plugins` are the options of other plugins. Raises SlurmError."""
    if not words:
        raise SlurmError("there is no srun command to vet for")
    known = {**OWN, **(plugins or {})}
    options: list[Option] = []
    at = 1
    while at < len(words):
        word = words[at]
        if word == "--" or not word.startswith("-") or word == "-":
            break
        following = words[at + 1] if at + 1 < len(words) else None
        if word.startswith("--"):
            option, used = _long(word, following, known)
            options.append(option)
        else:
            found, used = _short(word, following)
            options += found
        at += used
    return Words(words[0], tuple(options), tuple(words[at:]))


def attaches(words: Sequence[str]) -> bool:
    """Return whether this srun names a job that it joins. Where its options cannot be told apart, any word counts."""
    try:
        return parse(words).value("jobid") is not None
    except SlurmError:
        return any(word.startswith("--jobi") for word in words)


def is_quiet(words: Sequence[str]) -> bool:
    """Return whether srun, sbatch or salloc was told to be quiet; by the first options, if one is not known."""
    try:
        return any(option.name == "quiet" for option in parse(words).options)
    except SlurmError:
        options = itertools.takewhile(lambda word: word.startswith("-") and word != "--", words[1:])
        return any(word in ("-Q", "--quiet") for word in options)


def _long(word: str, following: str | None, known: Mapping[str, int]) -> tuple[Option, int]:
    written, equals, value = word[2:].partition("=")
    name = _full_name(written, known)
    if equals:
        return Option(name, value, (word,)), 1
    if name not in known:
        raise SlurmError(
            f"'{word}' is no option of srun that Piolet knows, so it cannot tell where the application begins",
            f"write {word}=VALUE if it takes one",
        )
    if known[name] != REQUIRED:
        return Option(name, "", (word,)), 1
    if following is None:
        raise SlurmError(f"srun's option {word} has no value")
    return Option(name, following, (word, following)), 2


def _full_name(written: str, known: Mapping[str, int]) -> str:
    """Return the option that an abbreviation stands for, as getopt_long does."""
    if written in known:
        return written
    longer = [name for name in known if name.startswith(written)]
    return longer[0] if len(longer) == 1 else written


def _short(word: str, following: str | None) -> tuple[list[Option], int]:
    found: list[Option] = []
    for at, letter in enumerate(word[1:], 1):
        name = _SHORT.get(letter)
        if name is None:
            raise SlurmError(
                f"'-{letter}' is no option of srun that Piolet knows, so it cannot tell where the application begins"
            )
        rest = word[at + 1 :]
        if OWN[name] == NONE:
            found.append(Option(name, "", (f"-{letter}",)))
        elif OWN[name] == OPTIONAL or rest:
            return [*found, Option(name, rest, (f"-{letter}{rest}",))], 1
        elif following is None:
            raise SlurmError(f"srun's option -{letter} has no value")
        else:
            return [*found, Option(name, following, (f"-{letter}", following))], 2
    return found, 1


def plugin_options(text: str) -> dict[str, int]:
    """Return the options that `srun --help` prints and that are none of srun's own."""
    found = {}
    for line in text.splitlines():
        for piece in line.split():
            if piece.startswith("--"):
                name, bracket, _ = piece[2:].partition("[=")
                plain, equals, _ = name.rstrip(",").partition("=")
                if plain and plain not in OWN:
                    found[plain] = OPTIONAL if bracket else REQUIRED if equals else NONE
                break
            if not piece.startswith("-"):
                break
    return found
