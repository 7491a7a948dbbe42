"""Connectors: one file per kind of source, which it turns into Arrow batches, each with a position.

A connector file offers a frozen dataclass that says where the rows are, and one generator:

    read(source, position, span=None, *, batch_rows=...) -> Iterator[Batch]

It yields what came after `position`, and nothing when there is nothing new; with a `span` it yields
what lies in that part of the source instead, and leaves the position where it stands. It hands over
every column as the source gave it, and leaves contract, casting, quarantine, drift and deduplication
to landing. It never writes to a source, and a secret never leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pyarrow as pa

Position = dict[str, Any]
"""How far a source was read, in its connector's words: JSON-serialisable, `{}` = not at all."""

SOURCE_POSITION = "_source_position"
"""The column of a batch that says, row by row, where it stood in the source. Optional."""


class Whole(Enum):
    """The one value of `Batch.replaces` that means every row of the table."""

    TABLE = "table"


@dataclass(frozen=True)
class Span:
    """A part of a source, to load again: what is at or after `start` and before `end`.

    Both are texts in the source's own order: a value of the cursor, the name of a partition, a
    file's path, an event's time. None is open.
    """

    start: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Batch:
    """Rows, and where the source stands once they have landed.

    Attributes:
        rows: the values as they arrived, by the source's column names, in bounded number. May
            carry `_source_position` (text); otherwise every row gets `where`.
        position: the position once these rows have landed.
        where: what the ledger and the rows say of where they came from, such as a file's path or
            `week 2017-05-08`. Empty: the position as JSON.
        rejected: what could not be decoded into a row at all, as `rejected_rows` makes it.
        unchanged_rows: rows that the source still holds just as they were last read, counted
            instead of sent.
        replaces: the rows whose place these take: `Whole.TABLE`, or those of the named places
            (`_source_position`), as when a file was written anew. Only read on the first batch of
            a transaction.
        completes: whether the transaction may end here. A file or a whole table that is sent in
            several batches ends with the one that completes it, so that it lands whole or not at all.
        first_time: the source vouches that none of these rows has been sent before.
        separable: these rows are a thing of their own, such as a file: when their shape breaks the
            contract they are set aside together and the rest goes on.
        as_text: the rows of these numbers with every value as text, where `rows` may have others: what is
            set aside is the same however it was read.
        present_keys: the key columns of every row that the source holds now; landing marks known
            rows as deleted when their key is not among them. Only on a batch that completes.
    """

    rows: pa.Table
    position: Position
    where: str = ""
    rejected: pa.Table | None = None
    unchanged_rows: int = 0
    replaces: Whole | tuple[str, ...] = ()
    completes: bool = True
    first_time: bool = False
    separable: bool = False
    as_text: Callable[[Sequence[int]], pa.Table] | None = None
    present_keys: pa.RecordBatchReader | None = None


def rejected_rows(
    reasons: Sequence[str], raw: Sequence[bytes | None], places: Sequence[str]
) -> pa.Table:
    """What a source sent that is no row: why, its bytes if there are any, and where it stood."""
    import pyarrow as pa

    return pa.table(
        {
            "reason": pa.array(reasons, pa.string()),
            "raw": pa.array(raw, pa.binary()),
            SOURCE_POSITION: pa.array(places, pa.string()),
        }
    )


def require_columns(
    system: str, table: str, *, expected: Sequence[str], arrived: Iterable[str]
) -> None:
    """Fail when a column that was asked for did not arrive.

    Raises:
        MendableError: it names the column, and what arrived.
    """
    arrived = list(arrived)
    missing = [column for column in expected if column not in arrived]
    if missing:
        raise MendableError(
            f"{system}.{table}: column {', '.join(missing)}",
            expected=f"the columns of its contract: {', '.join(expected)}",
            arrived=", ".join(arrived[:50]) or "no columns",
            mend="restore the column at the source, or change the contract in"
            f" orchestration/defs/raw/{system}/defs.yaml; nothing was loaded",
        )


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
