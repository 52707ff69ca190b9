"""Statements that differ in a table, its schema or their conditions. Imports nothing of the package.

Names and conditions are constants of the callers; names are checked to be plain words. Values of users are always
parameters, never part of a statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)?")


def table(name: str, schema: str = "") -> str:
    """``schema.name``, or the name alone. Raises ``ValueError`` unless both are lower-case words."""
    full = f"{schema}.{name}" if schema else name
    if not _NAME.fullmatch(full):
        raise ValueError(f"{full!r} is not the name of a table")
    return full


def select(columns: str, source: str, where: str = "") -> str:
    """``SELECT columns FROM source``, with a condition if there is one."""
    return " ".join(["SELECT", columns, "FROM", source, *(["WHERE", where] if where else [])])


def insert(target: str, query: str, *, ignore: bool = False) -> str:
    """Put what ``query`` selects into ``target``; with ``ignore`` rows whose key is there already are left out."""
    return " ".join(["INSERT OR IGNORE INTO" if ignore else "INSERT INTO", table(target), query])


def update(target: str, changes: str, where: str) -> str:
    """``UPDATE target SET changes WHERE where``."""
    return " ".join(["UPDATE", table(target), "SET", changes, "WHERE", where])


def view(name: str, query: str) -> str:
    """A temporary view, which goes with its connection."""
    return " ".join(["CREATE TEMP VIEW", table(name), "AS", query])


def within(column: str, query: str) -> str:
    """The condition that ``column`` is among what ``query`` selects."""
    return f"{column} IN ({query})"


def all_of(conditions: Iterable[str]) -> str:
    """All conditions at once; true if there are none."""
    return " AND ".join(["1", *conditions])


def marks(count: int) -> str:
    """``(?, ?, ?)``: the place of ``count`` parameters."""
    return f"({', '.join('?' * count)})"


def except_(query: str, other: str) -> str:
    """The rows of one query that are not among those of another."""
    return " ".join([query, "EXCEPT", other])


def differing(query: str, other: str) -> str:
    """The rows that only one of two queries selects."""
    one, two = (select("*", f"({except_(*pair)})") for pair in ((query, other), (other, query)))
    return " ".join([one, "UNION ALL", two])


def exists(*queries: str) -> str:
    """Whether any of the queries has a row: 0 or 1."""
    return " ".join(["SELECT", " OR ".join(f"EXISTS ({query})" for query in queries)])
