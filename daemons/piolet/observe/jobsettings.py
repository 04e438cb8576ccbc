"""The sections `[results]` and `[marks]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.config.schema import absolute_or_empty, not_empty, setting


@dataclass(frozen=True)
class ResultsConfig:
    """`[results]`: where the results of users' jobs are."""

    directory: str = setting(
        "",
        "Where results of vettings, scores and marks go, in which %u is the user; empty: XDG_STATE_HOME/piolet, or "
        "~/.local/state/piolet. All nodes must see it, and the user must be able to write there.",
        absolute_or_empty,
    )
    most: int = setting(
        1000, "A user's results on this cluster are no more than so many; then the oldest are removed.", least=1
    )
    most_mb: int = setting(
        5000, "They take no more than so many MB, likewise. What is younger than three days stays.", least=1
    )


@dataclass(frozen=True)
class MarksConfig:
    """`[marks]`: what is found in users' output when they ask for a job."""

    patterns: tuple[str, ...] = setting(
        [],
        "Patterns of RE2 besides the usual ones (loss, step, tokens per second), with a named group for each mark: "
        "'grad norm: (?P<grad_norm>[0-9.]+)'. Users have more of their own.",
        not_empty,
    )
