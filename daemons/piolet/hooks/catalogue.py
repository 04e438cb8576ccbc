"""Which hooks there are: Piolet's own and the site's, by the prefix of their annotations.

A site's hook is one file NAME.py with one class, in the directory that the configuration names; com.hooks.NAME is its
prefix, and where Piolet has a hook of that name, the site's is taken. It is loaded when a definition asks for it, and
not at all if others than root could have written it.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass

from piolet.api import Hook
from piolet.base.errors import PioletError
from piolet.hooks import trusted

# Name of the file in known/: class, prefix of the annotations. Listed here so that nothing is loaded to find a name.
OWN = {
    "aws_ofi_nccl": ("AwsOfiNccl", "com.hooks.aws_ofi_nccl"),
    "cxi": ("Cxi", "com.hooks.cxi"),
    "dcgm": ("Dcgm", "com.hooks.dcgm"),
    "entrypoint_log": ("EntrypointLog", "com.pyxis.entrypoint_log"),
    "ldcache": ("LdCache", "com.hooks.ldcache"),
    "netstack": ("Netstack", "com.hooks.netstack"),
    "nvidia_cuda_mps": ("NvidiaCudaMps", "com.hooks.nvidia_cuda_mps"),
    "pytorch_remap_vars": ("PytorchRemapVars", "com.pyxis.pytorch_remap_vars"),
    "slurm": ("Slurm", "com.hooks.slurm"),
    "ssh": ("Ssh", "com.hooks.ssh"),
}

_SETTLED_NS = 50_000_000


class BrokenHookError(PioletError):
    """A site's hook cannot be loaded, or did what a hook must not."""


@dataclass(frozen=True)
class Installed:
    """A hook that is there: the prefix of its annotations, and its module and class, or its file."""

    name: str
    annotation: str
    target: str

    @property
    def site(self) -> bool:
        """Whether it is the site's."""
        return self.target.endswith(".py")

    @property
    def switch(self) -> str:
        """The annotation that switches it on."""
        return f"{self.annotation}.enabled" if self.annotation.startswith("com.hooks.") else self.annotation


class Catalogue:
    """Piolet's hooks, and those in the site's directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._listed: tuple[int, dict[str, Installed]] | None = None
        self._loaded: dict[str, tuple[tuple[int, int, int], type[Hook]]] = {}

    def installed(self) -> dict[str, Installed]:
        """Return the hooks by the prefix of their annotations; nothing of theirs is loaded."""
        try:
            changed = os.stat(self._directory).st_mtime_ns  # a file that comes or goes
        except OSError:
            changed = 0
        if self._listed is None or self._listed[0] != changed:
            # Time stamps move in ticks: what has just changed may change again with the same one.
            settled = time.time_ns() - changed > _SETTLED_NS
            self._listed = (changed if settled else -1, self._list())
        return self._listed[1]

    def _list(self) -> dict[str, Installed]:
        own = "piolet.hooks.known"
        found = {prefix: Installed(name, prefix, f"{own}.{name}:{kind}") for name, (kind, prefix) in OWN.items()}
        try:
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(".py") and name[0] not in "._")
        except OSError:
            names = []  # none there, or not ours to see
        for name in names:
            short = name[:-3]
            prefix = OWN[short][1] if short in OWN else f"com.hooks.{short}"
            found[prefix] = Installed(short, prefix, os.path.join(self._directory, name))
        return found

    def load(self, installed: Installed) -> type[Hook]:
        """Return the class; that of a file that has changed is loaded anew. Raises BrokenHookError."""
        if not installed.site:
            module, _, kind = installed.target.partition(":")
            return getattr(importlib.import_module(module), kind)  # type: ignore[no-any-return]
        path = installed.target
        try:
            why = trusted.doubt(path)
            status = os.stat(path)
        except OSError as error:
            raise BrokenHookError(f"cannot read the hook {path}: {error.strerror}") from None
        if why:
            hint = "a hook is root's, as are the directories above it"
            raise BrokenHookError(f"the hook {path} is not loaded: {why}", hint)
        stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        known = self._loaded.get(path)
        if known is None or known[0] != stamp:
            try:
                known = self._loaded[path] = (stamp, trusted.class_in(path, "hook", installed.name, Hook))
            except trusted.UnusableError as error:
                raise BrokenHookError(str(error)) from None
        return known[1]
