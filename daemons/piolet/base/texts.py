"""Small texts that many say: a number with its noun, and rows in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(many: int, what: str) -> str:
    """Return a number with its noun: "1 node", "3 nodes"."""
    return f"{many} {what}" + ("" if many == 1 else "s")


def columns(
    rows: Sequence[Sequence[str]], widths: Sequence[int] = (), *, right: Collection[int] = (), gap: int = 2
) -> list[str]:
    """Return a line for each row; what is longer than its column pushes the rest aside.

    widths   of the columns but the last, which has none unless it is one of `right`; empty: of their longest cells
    right    the columns whose cells end where the column does
    """
    last = len(rows[0]) - 1 if rows else 0
    wide = widths or [max(len(row[column]) for row in rows) for column in range(last + 1 if rows else 0)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(wide[column]) if column in right else cell if column == last else cell.ljust(wide[column])
            for column, cell in enumerate(row)
        ]
        lines.append((" " * gap).join(cells))
    return lines
