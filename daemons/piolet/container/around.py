"""The shell script that stands in front of a step's commands where a definition has [startup], or `save`.

Pure. It is a file of the container, and its words are the entry program's first (entry.c), so that what is done before
the tasks is done as they are: as the user, in the step's control groups, with their environment and terminal. The
image's /bin/sh runs it.

Of all tasks, the first one to make a directory runs the commands; the others wait for what it writes there: on a node
in a tmpfs of the container's, in a job in the user's home, which nodes share. At the end, the last task on the step's
first node to end asks the keeper (keeper.py), and shows what that says. Names of variables begin with _piolet: the
shell hands those that were exported on to the tasks.
"""

from __future__ import annotations

import hashlib
import shlex

from piolet.container.plan import ANSWER, ASK, KEEPER, OF_JOB, SHARED
from piolet.environment.definition import Save, Startup

_SHOWN = 60
_HEAD = """#!/bin/sh
# What the definition file has done around the tasks of this step. Written by pioletd.
_piolet_node=${SLURMD_NODENAME:-$(hostname 2>/dev/null)}
_piolet_say() { printf 'piolet: %s\\n' "$*" >&2; }
_piolet_pause() { sleep "$_piolet_s" 2>/dev/null || sleep 1; _piolet_s=0.2; }
"""
_STARTUP = """
_piolet_limit={limit}
_piolet_at={place}
mkdir -p "$_piolet_at" 2>/dev/null
_piolet_work={work}
# Ends a process and what it has started, which would hold the terminal.
_piolet_kill() {{
	kill -STOP "$1" 2>/dev/null
	for _piolet_one in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do (_piolet_kill "$_piolet_one"); done
	kill -KILL "$1" 2>/dev/null
}}
_piolet_runner=
_piolet_step=${{SLURM_STEP_ID:-batch}}
if [ -e "$_piolet_at/status" ]; then
	# What failed in another step of the job is tried again.
	read -r _piolet_code _piolet_other <"$_piolet_at/status"
	[ "$_piolet_code" = 0 ] || [ "$_piolet_other" = "$_piolet_step" ] ||
		mv "$_piolet_at" "$_piolet_at.failed-$_piolet_other-$_piolet_step" 2>/dev/null
	mkdir -p "$_piolet_at" 2>/dev/null
fi
if mkdir "$_piolet_at/begun" 2>/dev/null; then
	# Of many nodes, only one speaks, until something fails.
	if [ "${{SLURM_NODEID:-0}}" = 0 ]; then
		/bin/sh -c "$_piolet_work" sh "$_piolet_at" "$_piolet_step" </dev/null >&2 &
	else
		/bin/sh -c "$_piolet_work" sh "$_piolet_at" "$_piolet_step" </dev/null >"$_piolet_at/log" 2>&1 &
	fi
	_piolet_runner=$!
elif [ ! -d "$_piolet_at/begun" ]; then
	_piolet_say "error: node $_piolet_node: [startup] cannot begin: $_piolet_at cannot be written to"
	exit 1
else
	_piolet_limit=$((_piolet_limit + 5))
fi
_piolet_s=0.02
_piolet_end=$(($(date +%s) + _piolet_limit))
until [ -e "$_piolet_at/status" ]; do
	[ "$(date +%s)" -lt "$_piolet_end" ] || break
	_piolet_pause
done
_piolet_code=late
[ ! -e "$_piolet_at/status" ] || read -r _piolet_code _piolet_other <"$_piolet_at/status"
if [ "$_piolet_code" = late ]; then
	[ -z "$_piolet_runner" ] || _piolet_kill "$_piolet_runner"
	[ -e "$_piolet_at/status" ] || echo "late $_piolet_step" >"$_piolet_at/status"
fi
[ -z "$_piolet_runner" ] || wait "$_piolet_runner" 2>/dev/null
if [ "$_piolet_code" != 0 ]; then
	if [ -n "$_piolet_runner" ] && [ -s "$_piolet_at/log" ]; then tail -n 10 "$_piolet_at/log" >&2; fi
	if [ -n "$_piolet_runner" ] && [ "$_piolet_code" = late ]; then
		_piolet_say "error: node $_piolet_node: [startup] did not end within $_piolet_limit s"
		printf 'hint: raise its timeout in the definition file\\n' >&2
	elif [ -n "$_piolet_runner" ]; then
		read -r _piolet_which <"$_piolet_at/which"
		_piolet_what="command $_piolet_which, ended with status $_piolet_code"
		_piolet_say "error: node $_piolet_node: [startup] failed: $_piolet_what"
		printf 'hint: what it said is above; no task was started\\n' >&2
	elif [ "${{SLURM_LOCALID:-0}}" = 0 ]{others}; then
		_piolet_say "error: node $_piolet_node: [startup] of this job failed, or did not end in time, where it was run"
	fi
	exit 1
fi
"""
_WORK = """_piolet_all() {{
{commands}
	return 0
}}
_piolet_all "$1"
echo "$? $2" >"$1/.status" && mv "$1/.status" "$1/status"
"""
_COMMAND = """	echo {number} {shown} >"$1/which"
	/bin/sh -c {text} || return $?"""
_SAVE = """
if [ "${{SLURM_NODEID:-0}}" = 0 ] && [ -z "${{SLURM_PIOLET_VETTING:-}}" ]; then
	trap : HUP INT QUIT USR1 USR2 ALRM TERM
	(exec "$@")
	_piolet_code=$?
	_piolet_tasks=${{SLURM_STEP_TASKS_PER_NODE:-1}}
	mkdir {shared}/ended.${{SLURM_LOCALID:-0}} 2>/dev/null
	set -- {shared}/ended.*
	if [ $# -ge "${{_piolet_tasks%%[!0-9]*}}" ]; then
		_piolet_keeper=
		read -r _piolet_keeper 2>/dev/null <{shared}/{keeper}
		_piolet_s=0.02
		if [ -n "$_piolet_keeper" ] && kill -0 "$_piolet_keeper" 2>/dev/null; then
			echo end 1<>{shared}/{ask} # opened for both it waits for nobody
			until [ -e {shared}/{answer} ] || ! kill -0 "$_piolet_keeper" 2>/dev/null; do _piolet_pause; done
		fi
		if [ -e {shared}/{answer} ]; then
			mkdir {shared}/told 2>/dev/null && cat {shared}/{answer} >&2
		else
			_piolet_say "warning: node $_piolet_node: the container was not saved: the process that does it was ended"
		fi
	fi
	trap - HUP INT QUIT USR1 USR2 ALRM TERM
	if [ "$_piolet_code" -gt 128 ] && [ "$_piolet_code" -le 192 ]; then
		ulimit -c 0 2>/dev/null
		kill -"$((_piolet_code - 128))" $$ 2>/dev/null
	fi
	exit "$_piolet_code"
fi
"""


def script(startup: Startup | None, save: Save | None) -> str:
    """Return the text of the script; '' where there is nothing around the tasks."""
    if startup is None and save is None:
        return ""
    text = _HEAD
    if startup is not None:
        text += _before(startup)
    if save is not None:
        text += _SAVE.format(shared=SHARED, keeper=KEEPER, ask=ASK, answer=ANSWER)
    return text + '\nexec "$@"\n'


def _before(startup: Startup) -> str:
    commands = "\n".join(
        _COMMAND.format(number=number, shown=shlex.quote(_shown(text)), text=shlex.quote(text))
        for number, text in enumerate(startup.commands, 1)
    )
    place, others = f"{SHARED}/startup", " && false"
    if startup.per == "job":
        # Another run of the job, and other commands in it, are another matter.
        mark = hashlib.sha256("\0".join(startup.commands).encode()).hexdigest()[:16]
        place, others = (
            f'"{OF_JOB}/${{SLURM_JOB_ID}}-${{SLURM_RESTART_COUNT:-0}}-${{SLURM_JOB_START_TIME:-0}}-{mark}"',
            "",
        )
    work = shlex.quote(_WORK.format(commands=commands))
    return _STARTUP.format(limit=max(1, round(startup.timeout_s)), place=place, work=work, others=others)


def _shown(text: str) -> str:
    line = "".join(one if one.isprintable() and one != "\\" else " " for one in text)
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
