"""The site's configuration, `piolet.toml`: its sections, and reading the file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piolet.base.errors import ConfigError
from piolet.central.settings import CentralConfig
from piolet.config.schema import SettingPlace, section
from piolet.config.schema import known as near
from piolet.environment.settings import EnvironmentConfig
from piolet.events.settings import EventsConfig
from piolet.forward.settings import ForwardConfig
from piolet.hooks.settings import HooksConfig
from piolet.images.settings import ImagesConfig
from piolet.node.settings import NodeConfig
from piolet.observe.jobsettings import MailConfig, MarksConfig, ResultsConfig
from piolet.observe.keepsettings import KeepConfig
from piolet.observe.settings import ObserveConfig
from piolet.samples.settings import ScoreConfig
from piolet.vet.settings import VetConfig

DEFAULT_PATH = Path("/etc/piolet/piolet.toml")


@dataclass(frozen=True)
class Config:
    """All of `piolet.toml`; every setting has a default, so that an empty file is a valid one."""

    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    vet: VetConfig = field(default_factory=VetConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    results: ResultsConfig = field(default_factory=ResultsConfig)
    marks: MarksConfig = field(default_factory=MarksConfig)
    mail: MailConfig = field(default_factory=MailConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    central: CentralConfig = field(default_factory=CentralConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)


def load(path: Path | None = None) -> Config:
    """Return the configuration in `path`, or the defaults when the default file is absent.

    Raises ConfigError: the file cannot be read (if it was named), is not TOML, or holds an unknown
    key or a value that is none for its key.
    """
    named = path not in (None, DEFAULT_PATH)  # srun's plugins always say which they mean
    path = path or DEFAULT_PATH
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except FileNotFoundError:
        if not named:
            return Config()
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # tomllib lets some of Python's own limits out as they are
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return from_dict(data, str(path), text)


def from_dict(data: dict[str, Any], origin: str, text: str = "") -> Config:
    """Return the configuration in `data`, which was parsed from `text`; `origin` is named in errors."""
    sections: dict[str, Any] = {}
    known = {f.name: f for f in dataclasses.fields(Config)}
    for name, table in data.items():
        place = SettingPlace(origin, text, name)
        if name not in known:
            raise ConfigError(f"{place}: unknown section [{name}]", near(name, known))
        if not isinstance(table, dict):
            raise ConfigError(f"{place}: [{name}] must be a table")
        sections[name] = section(known[name].default_factory, table, place)
    return Config(**sections)
