"""Builds the import packages `piolet` and `pyslurm_ext`, and, with `plugins`, the SPANK plugins.

pip install .                 the Python side
python setup.py plugins       the plugins, against the installed Slurm, into build/plugins
"""

import sys
from pathlib import Path

from setuptools import Command, find_packages, setup

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "spank"))
REQUIREMENTS = (HERE / "requirements.txt").read_text("utf-8").splitlines()
# The binding of libslurm is compiled where Slurm's headers are; without them the rest works.
SLURM = Path("/usr/include/slurm/slurm.h").exists()


class Plugins(Command):
    """Compile the C plugins."""

    description = "compile the SPANK plugins against the installed Slurm"
    user_options = [("output=", "o", "directory for the plugins")]

    def initialize_options(self) -> None:
        """Set the defaults."""
        self.output = "build/plugins"

    def finalize_options(self) -> None:
        """Nothing depends on other options."""

    def run(self) -> None:
        """Compile."""
        from build_shims import build_plugins

        for path in build_plugins(Path(self.output)):
            print(path)


setup(
    name="piolet",
    version="0.1.0",
    description="Containers, vetting and saturation scores for Slurm steps",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "daemons", "pyslurm_ext": "pyslurm_ext/pyslurm_ext"},
    packages=[*find_packages("daemons"), "pyslurm_ext"],
    package_data={
        "pyslurm_ext": ["_slurm.pyi", "py.typed"],
        "piolet.score.report": ["*.css", "*.js"],
        "piolet.observe.page": ["*.css", "*.js"],
        "piolet.central.rules": ["catalogue.toml"],
        "piolet.observe": ["rates.json"],
    },
    install_requires=[line for line in REQUIREMENTS if line and not line.startswith("#")],
    cffi_modules=[
        "spank/build_wire.py:ffibuilder",
        "spank/build_munge.py:ffibuilder",
        *["pyslurm_ext/build_slurm.py:ffibuilder"] * SLURM,
    ],
    cmdclass={"plugins": Plugins},
    entry_points={
        "console_scripts": [
            "piolet = piolet.cli.start:main",
            "pioletd = piolet.cli.pioletd:main",
            "piolet-imaged = piolet.cli.imaged:main",
            "piolet-forward = piolet.cli.forwardd:main",
            "piolet-central = piolet.cli.centrald:main",
        ]
    },
)
