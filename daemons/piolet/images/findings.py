"""What a vulnerability scanner found in an image: reports read, counted, and judged by the site's policy. Pure.

Read are the JSON reports of Trivy (`Results`, `Vulnerabilities`), of Grype (`matches`), and a plain one for any other
program: {"vulnerabilities": [{"id", "severity", "package", "published"}]}; `published`, a date, may be missing.
A report of another form is an error, never a report of nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from piolet.base import units
from piolet.base.errors import ImageError

SEVERITIES = ("critical", "high", "medium", "low", "unknown")
LIMIT_BYTES = 64 << 20
LIMIT_FINDINGS = 2000
"""So many are kept, the worst; all are counted."""
_SHOWN = 5
_ALIASES = {"negligible": "low", "none": "low", "moderate": "medium", "important": "high"}


@dataclass(frozen=True)
class Policy:
    """What a site wants of images: `action` off, warn or block, for findings of at least `severity`.

    grace_s   a finding counts once it has been published for so long, and at once where nobody says since when
    """

    action: str = "off"
    severity: str = "critical"
    grace_s: float = 0.0


def read(raw: bytes) -> dict[str, Any]:
    """Return the findings of a scanner's report: {counts, found}, found as [id, severity, package, published or None].

    Raises ImageError for what is no report.
    """
    try:
        value = json.loads(raw) if len(raw) <= LIMIT_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImageError("the scanner's report is not a JSON object of at most 64 MiB")
    found: dict[tuple[str, str], tuple[str, str, str, float | None]] = {}
    for item in _items(value):
        name, severity, package, published = item
        found.setdefault((name, package), (name, severity, package, published))
    ranked = sorted(found.values(), key=lambda one: (SEVERITIES.index(one[1]), one[0], one[2]))
    counts = Counter(one[1] for one in ranked)
    return {"counts": dict(counts), "found": [list(one) for one in ranked[:LIMIT_FINDINGS]]}


def _items(report: dict[str, Any]) -> Iterator[tuple[str, str, str, float | None]]:
    if isinstance(report.get("matches"), list):  # Grype
        for match in report["matches"]:
            vulnerability, artifact = _table(_table(match).get("vulnerability")), _table(_table(match).get("artifact"))
            yield _item(vulnerability, "id", "severity", artifact.get("name"), "publishedDate")
    elif "SchemaVersion" in report and isinstance(report.get("Results", []) or [], list):  # Trivy
        for result in report.get("Results") or []:
            for one in _table(result).get("Vulnerabilities") or []:
                yield _item(_table(one), "VulnerabilityID", "Severity", _table(one).get("PkgName"), "PublishedDate")
    elif isinstance(report.get("vulnerabilities"), list):
        for one in report["vulnerabilities"]:
            yield _item(_table(one), "id", "severity", _table(one).get("package"), "published")
    else:
        raise ImageError("the scanner's report is of no form that Piolet reads", "Trivy's and Grype's JSON are")


def _item(
    table: dict[str, Any], name: str, severity: str, package: Any, published: str
) -> tuple[str, str, str, float | None]:
    word = str(table.get(severity) or "unknown").lower()
    word = _ALIASES.get(word, word)
    since = None
    if isinstance(table.get(published), str):
        try:
            at = datetime.fromisoformat(table[published])
            since = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            since = None
    what = str(table.get(name) or "unnamed")[:80]
    return what, word if word in SEVERITIES else "unknown", str(package or "")[:80], since


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError("the scanner's report is malformed: an object was expected")
    return value


def brief(scan: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a listing needs of a scan: when it was, and numbers or an error."""
    return None if scan is None else {key: scan[key] for key in ("at", "counts", "error") if key in scan}


def counted(counts: dict[str, Any]) -> str:
    """Return the numbers for people: "2 critical, 7 high"; "none"."""
    return ", ".join(f"{counts[word]} {word}" for word in SEVERITIES if counts.get(word)) or "none"


def told(scan: dict[str, Any] | None, now: float) -> str:
    """Return in a few words what is known: counts and how old they are, or that nothing is."""
    if scan is None:
        return "not scanned"
    ago = units.age(max(0.0, now - float(scan.get("at", 0))))
    return f"scan failed {ago} ago" if scan.get("error") else f"{counted(scan.get('counts', {}))} ({ago} ago)"


def judge(scan: dict[str, Any] | None, policy: Policy, now: float) -> str | None:
    """Return a clause about what the policy is against in an image, or None.

    An image that was not scanned, or whose scan failed, is not one in which nothing was found.
    """
    if policy.action == "off":
        return None
    if scan is None:
        return "was not scanned for vulnerabilities"
    if scan.get("error"):
        return f"could not be scanned for vulnerabilities: {scan['error']}"
    worst = SEVERITIES[: SEVERITIES.index(policy.severity) + 1]
    counts = [
        (name, severity)
        for name, severity, _, published in scan.get("found", [])
        if severity in worst and (published is None or now - published >= policy.grace_s)
    ]
    if not counts:
        return None
    names = list(dict.fromkeys(name for name, _ in counts))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    known = f", known for {units.age(policy.grace_s)} or longer" if policy.grace_s else ""
    numbers = counted(dict(Counter(severity for _, severity in counts)))
    return f"has vulnerabilities ({numbers}{known}): {', '.join(names[:_SHOWN])}{more}"
