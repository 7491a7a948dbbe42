"""Connectors: one file per kind of source, which it turns into Arrow batches, each with a position.

A connector file offers a frozen dataclass that says where the rows are, and one generator:

    read(source, position, *, batch_rows=...) -> Iterator[Batch]

It yields what came after `position`, and nothing when there is nothing new. It asks for the
contract's columns only, hands over the values as the source gave them, and leaves casting,
quarantine and deduplication to landing. It never writes, and a secret never leaves its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pyarrow as pa

Position = dict[str, Any]
"""How far a source was read, in its connector's words: JSON-serialisable, `{}` = not at all."""


@dataclass(frozen=True)
class Batch:
    """Rows, and where the source stands once they have landed.

    Attributes:
        rows: the contract's columns, with the values as they arrived. At most about as many rows
            as the caller asked for, so that memory stays bounded.
        position: the position once these rows have landed.
        unchanged_rows: rows that the source still holds just as they were last read, counted
            instead of sent.
        unexpected_columns: columns of the source that the contract does not name, left there.
    """

    rows: pa.Table
    position: Position
    unchanged_rows: int = 0
    unexpected_columns: tuple[str, ...] = ()


def unexpected_columns(
    system: str, table: str, *, expected: Sequence[str], arrived: Iterable[str]
) -> tuple[str, ...]:
    """The columns that arrived beyond the expected ones, in their order.

    Raises:
        MendableError: an expected column did not arrive.
    """
    arrived = list(arrived)
    missing = [column for column in expected if column not in arrived]
    if missing:
        raise MendableError(
            f"{system}.{table}: column {', '.join(missing)}",
            expected=f"the columns of its contract: {', '.join(expected)}",
            arrived=", ".join(arrived) or "no columns",
            mend="restore the column at the source, or change the contract in"
            f" orchestration/contracts/{system}.py; nothing was loaded",
        )
    return tuple(column for column in arrived if column not in expected)


def address(url: str) -> str:
    """`host:port` of a URL, fit to print: never its user, password, path or query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "the configured address"
    # An `@` further on means a password with an unescaped `/`, `?` or `#`: its parts are misread.
    if not parts.hostname or "@" in parts.path + parts.query + parts.fragment:
        return "the configured address"
    return parts.hostname if port is None else f"{parts.hostname}:{port}"
