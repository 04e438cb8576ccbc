"""Makes the build from which checks were removed: `python -m tests.attacks.weaken DIRECTORY`.

It is laid out as an installation from RPMs below DIRECTORY, so `tools.cluster up --from-rpm DIRECTORY` runs it. It
takes its libraries from build/venv. A weakening whose text is not there (any more) is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from tests.attacks.weakenings import WEAKENINGS

ROOT = Path(__file__).resolve().parents[2]
_START = """#!/usr/lib/piolet/bin/python3 -I
import sys
from {module} import main
sys.exit(main())
"""


class WeakenError(Exception):
    """A weakening does not apply."""


def sources(root: Path) -> dict[str, str]:
    """Return every source that is changed, by its path in the repository at `root`, with all checks removed.

    Raises WeakenError: a check is not there, or not once.
    """
    texts: dict[str, str] = {}
    for name, one in WEAKENINGS.items():
        for file, old, new in one.changes:
            text = texts.get(file) or (root / file).read_text("utf-8")
            if text.count(old) != 1:
                raise WeakenError(f"weakening '{name}': {file} has this {text.count(old)} times, not once:\n{old}")
            texts[file] = text.replace(old, new)
    return texts


def _programs() -> dict[str, str]:
    """Return the modules of Piolet's commands, by name."""
    found = metadata.distribution("piolet").entry_points.select(group="console_scripts")
    return {one.name: one.module for one in found}


def make(directory: Path) -> Path:
    """Make the build anew in `directory`; return its interpreter."""
    shutil.rmtree(directory, ignore_errors=True)
    home = directory / "usr/lib/piolet"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    for place in (packages, home / "bin", directory / "usr/bin", directory / "usr/libexec"):
        place.mkdir(parents=True)
    base = Path(os.path.realpath(sys.executable))
    for name in ("python", "python3"):
        (home / "bin" / name).symlink_to(base)
    (home / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (home / "weakened").touch()
    real = Path(sysconfig.get_paths()["purelib"])
    (packages / "libraries.pth").write_text(f"{real}\n")
    shutil.copytree(real / "piolet", packages / "piolet", ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in sources(ROOT).items():
        (packages / Path(file).relative_to("daemons")).write_text(text, "utf-8")
    for name, module in _programs().items():
        (directory / "usr/bin" / name).write_text(_START.format(module=module))
        (directory / "usr/bin" / name).chmod(0o755)
    plugins = ROOT / "build/plugins"
    for name in ("usr/lib64/slurm", "usr/libexec/piolet"):
        shutil.copytree(plugins, directory / name)
    python = home / "bin/python3"
    subprocess.run([python, "-I", "-m", "compileall", "-q", packages], check=True)
    return python


def main(argv: list[str]) -> int:
    """Make it; return the exit status."""
    if len(argv) != 1:
        print("usage: python -m tests.attacks.weaken DIRECTORY", file=sys.stderr)
        return 2
    os.umask(0o022)
    print(make(Path(argv[0]).resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
