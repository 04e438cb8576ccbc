"""Where everything of one cluster lies. Computes paths; reads nothing but links, and which installation it runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

RUN = Path("/run")
RUN_PREFIX = "piolet-cluster-"


@dataclass(frozen=True)
class Layout:
    """The paths of the cluster in directory `root` (absolute, links resolved).

    `run` is a short directory that only root may create, because the path of a socket ends at 108
    bytes and a checkout may lie deep; its name comes from `root`, so two clusters never share one.

    `installed` is the root directory of an installation from RPMs whose plugins, programs and environment the
    cluster runs, or None: those of build/.
    """

    root: Path
    build: Path
    installed: Path | None = None

    @property
    def tag(self) -> str:
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:10]

    @property
    def run(self) -> Path:
        return RUN / f"{RUN_PREFIX}{self.tag}"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def client_conf(self) -> Path:
        return self.etc / "client" / "slurm.conf"

    @property
    def results(self) -> Path:
        """Where users' results are, a directory for each; of the present or the last run."""
        return self.root / "results"

    @property
    def piolet_toml(self) -> Path:
        return self.etc / "piolet.toml"

    @property
    def hosts(self) -> Path:
        return self.etc / "hosts"

    @property
    def site(self) -> Path:
        """A directory that every container has."""
        return self.root / "site"

    @property
    def edf(self) -> Path:
        return self.root / "edf"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def slurm_state(self) -> Path:
        return self.root / "state"

    @property
    def state_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def ports_file(self) -> Path:
        return self.root / "ports.json"

    @property
    def env_sh(self) -> Path:
        return self.root / "env.sh"

    @property
    def as_script(self) -> Path:
        return self.root / "as"

    @property
    def munge(self) -> Path:
        return self.run / "munge"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "munge.socket"

    @property
    def images_socket(self) -> Path:
        return self.run / "images" / "images.sock"

    @property
    def spool(self) -> Path:
        return self.run / "spool"

    @property
    def tmp(self) -> Path:
        """Below here each node has its TmpFS: nodes share /tmp, and what PMIx of Slurm makes there is a node's."""
        return Path("/tmp") / f"{RUN_PREFIX}{self.tag}"

    @property
    def venv_bin(self) -> Path:
        return self.build / "venv" / "bin" if self.installed is None else self.root / "programs"

    @property
    def plugins(self) -> Path:
        return self.build / "plugins" if self.installed is None else self.installed / "usr/lib64/slurm"

    @property
    def libexec(self) -> Path:
        return self.build / "plugins" if self.installed is None else self.installed / "usr/libexec/piolet"

    @property
    def installed_file(self) -> Path:
        """What says of a cluster that runs which installation it runs."""
        return self.root / "installed"

    @property
    def plugin(self) -> Path:
        return self.plugins / "piolet_environment.so"

    @property
    def entry_program(self) -> Path:
        return self.libexec / "piolet-entry"

    @property
    def vet_program(self) -> Path:
        return self.libexec / "piolet-vet-task"

    @property
    def score_plugin(self) -> Path:
        return self.plugins / "piolet_score.so"

    @property
    def outcomes_plugin(self) -> Path:
        return self.plugins / "piolet_outcomes.so"

    @property
    def outcomes_on(self) -> Path:
        return self.etc / "plugstack.conf.d" / "outcomes.conf"

    @property
    def outcomes_off(self) -> Path:
        """The line of the plugin that says how tasks end, under a name that Slurm does not read."""
        return self.outcomes_on.with_suffix(".conf.off")

    @property
    def gpus(self) -> Path:
        return self.root / "gpus"

    @property
    def vet_plugin(self) -> Path:
        return self.plugins / "piolet_vet.so"

    @property
    def cache(self) -> Path:
        """What is dear to make and the same for every cluster of this checkout: the demo image."""
        return self.build / "cache"


def layout_for(directory: Path) -> Layout:
    """Return the layout of the cluster in `directory`, which need not exist yet."""
    layout = Layout(root=directory.resolve(), build=(REPOSITORY / "build").resolve())
    try:
        return replace(layout, installed=Path(layout.installed_file.read_text("utf-8").rstrip("\n")))
    except OSError:
        return layout


def node_names(count: int) -> list[str]:
    return [f"node{number}" for number in range(1, count + 1)]
