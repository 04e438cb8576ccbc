"""An SSH server of the node in a container, for editors and shells that come by SSH.

It has no port: a client reaches it through Slurm, `ProxyCommand srun -u --overlap --jobid=JOB --environment=EDF
/run/piolet/ssh/serve`, so that who connects is who may start a step of the job. What it starts has the step's
environment. A port is opened only where the site allows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from piolet.api import Asked, Entry, File, Hook, Missing, Mount, Node, Program, Refused, Step
from piolet.hooks.known import _client

_PLACE = "/run/piolet/ssh"
_SSHD, _KEYGEN = "/usr/sbin/sshd", "/usr/bin/ssh-keygen"
_SFTP = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
# From OpenSSH 9.8 on sshd is several programs, which it finds by its configuration.
_PARTS = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
_FOLDERS = ("/usr/lib/openssh", "/usr/libexec/openssh")
_PORTS = range(1024, 65536)
_KEYS = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")

_SERVE = """#!/bin/sh
set -eu
umask 077
# In the container's own root, which ends with it, however that is: keys and variables must not stay in the node's /tmp.
room=$(mktemp -d /run/piolet/ssh.XXXXXX 2>/dev/null) || {{
	echo 'piolet: ssh: there is no room for keys: the container is not writable' >&2
	echo 'hint: set writable = true in the definition file' >&2
	exit 1
}}
trap 'rm -rf "$room"' EXIT
export -p > "$room/environment"
{start} {place}/ssh-keygen -q -t ed25519 -N "" -f "$room/key" </dev/null >/dev/null
cat {place}/authorized "$HOME"/.ssh/*.pub > "$room/authorized" 2>/dev/null || true
cat > "$room/config" <<END
HostKey $room/key
AuthorizedKeysFile $room/authorized
AuthenticationMethods publickey
UsePAM no
StrictModes no
PidFile $room/pid
PrintMotd no
SetEnv PIOLET_SSH=$room
ForceCommand {place}/session
{more}
END
"""
_THROUGH = '{start} {place}/sshd -i -f "$room/config"\n'
# It writes its number once it has the port, and ends where it has not. Its room stays: it reads it.
_LISTEN = """trap - EXIT
{start} {place}/sshd -D {flag} -p {port} -E "$room/log" -f "$room/config" &
while [ ! -s "$room/pid" ]; do
	kill -0 $! 2>/dev/null || exit 98
	sleep 0.1
done
"""
_SESSION = """#!/bin/sh
term=${TERM-dumb} agent=${SSH_AUTH_SOCK-} command=${SSH_ORIGINAL_COMMAND-}
. "$PIOLET_SSH/environment"
export TERM="$term"
unset PIOLET_SSH SSH_ORIGINAL_COMMAND
[ -z "$agent" ] || export SSH_AUTH_SOCK="$agent"
shell=${SHELL:-/bin/sh}
[ -x "$shell" ] || shell=/bin/sh
[ -z "$command" ] || exec "$shell" -c "$command"
exec "$shell" -l
"""
_PART = """#!/bin/sh
exec {start} {place}/parts/{name} "$@"
"""


class Ssh(Hook):
    """The node's sshd, run as the user by a step of theirs."""

    name = "ssh"
    text = "an SSH server inside, reached through srun (/run/piolet/ssh/serve); no port, unless the site allows one"
    source = "OpenSSH, sshd(8) and sshd_config(5); CSCS, SSH hook; read 2026-11-29"
    options: ClassVar[dict[str, str]] = {
        "authorize_ssh_key": "a public key, or the path of a file with one; the public keys in ~/.ssh are let in, too",
        "port": "a port to listen at, where the site allows it",
    }
    settings: ClassVar[dict[str, str]] = {
        "port": '"allowed": a user may have sshd listen at a port of the node',
        "sshd": f"the server ({_SSHD})",
        "libraries": "further directories of its libraries, separated by colons",
    }

    @classmethod
    def where(cls, site: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The programs, with what they are linked with."""
        parts = tuple(f"{folder}/{part}" for folder in _FOLDERS for part in _PARTS.values())
        return parts, (site.get("sshd", _SSHD), _KEYGEN, *_SFTP)

    def check(self, asked: Asked) -> None:
        """A key or a path; a port where ports are allowed."""
        key = asked.options.get("authorize_ssh_key", "")
        if key and not key.startswith(("/", *_KEYS)):
            raise Refused(f"authorize_ssh_key '{key[:60]}' is neither a public key nor an absolute path")
        port = asked.options.get("port")
        if port is None:
            return
        if asked.site.get("port") != "allowed":
            hint = f"connect through srun: ProxyCommand srun -u --overlap --jobid=JOB --environment=EDF {_PLACE}/serve"
            raise Refused("a port is not allowed here", hint)
        if not port.isdigit() or int(port) not in _PORTS:
            raise Refused(f"port '{port[:20]}' is not a number from {_PORTS[0]} to {_PORTS[-1]}")

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Scripts, and the programs that they start."""
        self.check(asked)
        sshd = asked.site.get("sshd", _SSHD)
        if not node.paths(sshd) or not node.paths(_KEYGEN):
            raise Missing(f"there is no {sshd} and {_KEYGEN} on this node", "install openssh-server, or set ssh.sshd")
        libraries = [one for one in asked.site.get("libraries", "").split(":") if one]
        found, start = _client.carry(node, (sshd, _KEYGEN), _PLACE, libraries)
        found += [Mount(sshd, f"{_PLACE}/sshd"), Mount(_KEYGEN, f"{_PLACE}/ssh-keygen")]
        more: list[str] = []
        sftp = node.first(*_SFTP)
        if sftp:
            found += [Mount(sftp, f"{_PLACE}/parts/sftp-server"), _part("sftp-server", start)]
            more.append(f"Subsystem sftp {_PLACE}/sftp-server")
        separate = False
        for word, name in _PARTS.items():
            path = node.first(*(f"{folder}/{name}" for folder in _FOLDERS))
            if path:
                separate = True
                found += [Mount(path, f"{_PLACE}/parts/{name}"), _part(name, start)]
                more.append(f"{word} {_PLACE}/{name}")
        key = asked.options.get("authorize_ssh_key", "")
        if key.startswith("/"):
            found.append(Mount(key, f"{_PLACE}/authorized"))
        else:
            found.append(File(f"{_PLACE}/authorized", f"{key}\n"))
        text = _SERVE.format(start=start, place=_PLACE, more="\n".join(more))
        found.append(File(f"{_PLACE}/serve", text + _THROUGH.format(start=start, place=_PLACE), executable=True))
        found.append(File(f"{_PLACE}/session", _SESSION, executable=True))
        port = asked.options.get("port")
        if port is not None:
            flag = "" if separate else "-r"
            listen = _LISTEN.format(start=start, place=_PLACE, port=port, flag=flag)
            found.append(File(f"{_PLACE}/listen", text + listen, executable=True))
            found.append(Program((f"{_PLACE}/listen",), wait_s=10.0, failure=f"is port {port} of this node taken?"))
        return found


def _part(name: str, start: str) -> File:
    return File(f"{_PLACE}/{name}", _PART.format(start=start, place=_PLACE, name=name), executable=True)
