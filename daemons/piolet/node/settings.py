"""The section `[node]` of piolet.toml, and what else of it pioletd works by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from piolet.config.schema import absolute, not_empty, setting, socket_path
from piolet.environment.settings import EnvironmentConfig
from piolet.events.settings import EventsConfig
from piolet.hooks.settings import HooksConfig
from piolet.images.settings import ImagesConfig
from piolet.observe.settings import ObserveConfig
from piolet.samples.settings import ScoreConfig
from piolet.vet.settings import VetConfig


@dataclass(frozen=True)
class NodeConfig:
    """`[node]`: pioletd on a compute node."""

    socket: str = setting("/run/piolet/node.sock", "Where the plugins in slurmstepd find pioletd.", socket_path)
    vet_socket: str = setting("/run/piolet/vet.sock", "Where the tasks of vet steps find pioletd.", socket_path)
    vet_program: str = setting("/usr/libexec/piolet/piolet-vet-task", "What a vet step runs on every node.", absolute)
    score_socket: str = setting(
        "/run/piolet/score.sock", "Where the plugins in slurmstepd find the sampler.", socket_path
    )
    state: str = setting("/run/piolet", "What is known of running steps, for a restarted daemon.", absolute)
    account: str = setting("piolet", "The account of the unprivileged server.", not_empty)
    build_timeout_s: int = setting(20, "A container that is not built after this many seconds fails its step.", least=1)
    verbose: bool = setting(False, "Log every step, and where its start spent the time (as pioletd --verbose).")
    image_idle_s: int = setting(600, "An image that no step has used for this many seconds is unmounted.")
    image_mounts: Literal["auto", "idmap", "devicemapper", "fuse"] = setting(
        "auto", "How users get images of the store: auto (what the kernel can do), idmap, devicemapper or fuse."
    )
    views_per_image: int = setting(
        8, "With devicemapper, so many users have a view of one image; squashfuse serves more.", least=1
    )


class Forwarding(Protocol):
    """The forwarder: its account, whose group may read events, and where it says what is delivered."""

    @property
    def account(self) -> str: ...
    @property
    def state(self) -> str: ...


class Central(Protocol):
    """The central service: where it is, '' for nowhere."""

    @property
    def url(self) -> str: ...


class Settings(Protocol):
    """All sections; piolet.site.config.Config is one."""

    @property
    def environment(self) -> EnvironmentConfig: ...
    @property
    def hooks(self) -> HooksConfig: ...
    @property
    def images(self) -> ImagesConfig: ...
    @property
    def node(self) -> NodeConfig: ...
    @property
    def vet(self) -> VetConfig: ...
    @property
    def score(self) -> ScoreConfig: ...
    @property
    def events(self) -> EventsConfig: ...
    @property
    def forward(self) -> Forwarding: ...
    @property
    def observe(self) -> ObserveConfig: ...
    @property
    def central(self) -> Central: ...
