"""Reads tables of relational databases, SQLite and PostgreSQL, through DuckDB's extensions.

A table with a cursor (a column that grows, such as a timestamp) is read incrementally, in the
cursor's order: position `{"cursor": "<largest value read>"}`. Rows at that very value are read
again, because more of them may have come; rows whose cursor is missing or unreadable are read
every time. Landing knows them again. A row that appears later with a smaller cursor is not seen.

A table without a cursor is read whole if it has changed: position `{"fingerprint": "<hash of the
rows, whatever their order>", "rows": <count>}`. All its batches belong into one transaction.

SQLite does not enforce the types that its columns declare, so its values arrive as text and the
contract decides. PostgreSQL's arrive typed; timestamps with a zone as naive UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from orchestration.connectors import Batch, Position, address, unexpected_columns
from orchestration.duckdb_session import literal, open_session, quoted
from orchestration.errors import MendableError, SourceUnavailableError

BATCH_ROWS = 250_000
TIMEOUT_SECONDS = 5
"""How long a connection, or a lock that another program holds on an SQLite file, may take."""

_POSITION = "_position"


@dataclass(frozen=True)
class RelationalTable:
    """A table of a relational database.

    Attributes:
        url: `sqlite:///path/to/file` or `postgresql://user:password@host:port/database`.
        table: the table's name.
        columns: the columns to read, in this order; the cursor among them.
        system: the source system's short name, for errors.
        url_setting: the setting that holds `url`, for errors.
        cursor: the column by which the table grows, or None to read it whole.
        schema: the table's schema; None is the database's default.
    """

    url: str = field(repr=False)
    table: str
    columns: tuple[str, ...]
    system: str
    url_setting: str
    cursor: str | None = None
    schema: str | None = None


def read(
    source: RelationalTable,
    position: Position,
    *,
    batch_rows: int = BATCH_ROWS,
    memory_limit: str = "1GB",
) -> Iterator[Batch]:
    """Read what came after `position`, as it stood at one moment.

    Args:
        source: the table.
        position: where the last read ended; `{}` to begin.
        batch_rows: most rows in a batch.
        memory_limit: most memory DuckDB may use meanwhile; what needs more goes to disk.

    Raises:
        SourceUnavailableError: the database does not answer or refuses the login.
        MendableError: the file, the table or a column of it is missing or cannot be read.
    """
    extension, attach = _attach_statement(source)
    with (
        open_session(memory_limit=memory_limit, extensions=[extension]) as connection,
        _named_errors(source),
    ):
        connection.execute("set TimeZone = 'UTC'")
        connection.execute(attach)
        declared = _declared_columns(connection, source)
        unexpected = unexpected_columns(
            source.system, source.table, expected=source.columns, arrived=declared
        )
        batches = _whole_table if source.cursor is None else _after_cursor
        for batch in batches(connection, source, declared, position, batch_rows):
            yield replace(batch, unexpected_columns=unexpected)


class _Column(NamedTuple):
    """What the database says about a column: its SQL type, and whether a value can be missing."""

    kind: str
    nullable: bool


def _whole_table(
    connection: duckdb.DuckDBPyConnection,
    source: RelationalTable,
    declared: dict[str, _Column],
    position: Position,
    batch_rows: int,
) -> Iterator[Batch]:
    names = ", ".join(map(quoted, source.columns))
    # Copied by one statement, so that fingerprint and rows are of the same moment. A transaction
    # would do as well, but DuckDB aborts the process when PostgreSQL goes away in the middle of one.
    connection.execute(
        f"create temp table snapshot as select {_select_list(source, declared)}"
        f" from {_table(source)}"
    )
    row = connection.execute(
        f"""
        select cast(coalesce(sum(cast(hash({names}) as hugeint)), 0) as varchar), count(*)
        from snapshot
        """
    ).fetchone()
    assert row is not None
    fingerprint, rows = row
    arrived = {"fingerprint": fingerprint, "rows": rows}
    if arrived == position:
        yield Batch(pa.table({}), position, unchanged_rows=rows)
        return
    reader = connection.execute("select * from snapshot").to_arrow_reader(batch_rows)
    if rows == 0:
        yield Batch(reader.schema.empty_table(), arrived)
    for record_batch in reader:
        yield Batch(_valid(record_batch), arrived)


def _after_cursor(
    connection: duckdb.DuckDBPyConnection,
    source: RelationalTable,
    declared: dict[str, _Column],
    position: Position,
    batch_rows: int,
) -> Iterator[Batch]:
    assert source.cursor is not None
    column, value = declared[source.cursor], quoted(source.cursor)
    if _is_sqlite(source.url):
        value = f"try_cast({value} as {column.kind})"
    where = ""
    if position:
        where = f"where {value} >= cast({literal(position['cursor'])} as {column.kind})"
        if column.nullable:  # PostgreSQL can use an index when this is left out
            where += f" or {value} is null"
    reader = connection.execute(
        f"""
        select {_select_list(source, declared)}, cast({value} as varchar) as {_POSITION}
        from {_table(source)}
        {where}
        order by {value} nulls first
        """
    ).to_arrow_reader(batch_rows)
    for record_batch in reader:
        rows = _valid(record_batch)
        largest = rows[_POSITION][-1].as_py()
        if largest is not None:
            position = {"cursor": largest}
        yield Batch(rows.drop_columns([_POSITION]), position)


def _valid(record_batch: pa.RecordBatch) -> pa.Table:
    """The rows; SQLite takes any bytes for text, and other programs crash on what is not UTF-8."""
    rows = pa.Table.from_batches([record_batch])
    rows.validate(full=True)
    return rows


def _is_sqlite(url: str) -> bool:
    return url.startswith("sqlite:///")


def _table(source: RelationalTable) -> str:
    parts = ["source", *([source.schema] if source.schema else []), source.table]
    return ".".join(map(quoted, parts))


def _select_list(source: RelationalTable, declared: dict[str, _Column]) -> str:
    return ", ".join(
        f"cast({quoted(name)} as timestamp) as {quoted(name)}"
        if declared[name].kind == "TIMESTAMP WITH TIME ZONE" and not _is_sqlite(source.url)
        else quoted(name)
        for name in source.columns
    )


def _attach_statement(source: RelationalTable) -> tuple[str, str]:
    """The DuckDB extension, and the statement that attaches the database read-only as `source`."""
    if _is_sqlite(source.url):
        path = Path(source.url.removeprefix("sqlite:///"))
        if not path.is_file():  # attaching would create it
            raise MendableError(
                f"{source.system}: the database file {path}",
                expected="an SQLite database",
                arrived="no such file",
                mend=f"make demo fills the demo's database; for another, set {source.url_setting}",
            )
        options = f"type sqlite, read_only, busy_timeout {TIMEOUT_SECONDS * 1000}"
        return "sqlite_scanner", f"attach {literal(str(path))} as source ({options})"
    if source.url.startswith(("postgresql://", "postgres://")):
        url = source.url
        if "connect_timeout=" not in url:
            url += f"{'&' if '?' in url else '?'}connect_timeout={TIMEOUT_SECONDS}"
        return "postgres", f"attach {literal(url)} as source (type postgres, read_only)"
    raise MendableError(
        f"setting {source.url_setting}",
        expected="sqlite:///path/to/file or postgresql://user:password@host:port/database",
        arrived="a URL of another form",
        mend=f"change {source.url_setting} in the environment or in .env; see .env.example",
    )


def _declared_columns(
    connection: duckdb.DuckDBPyConnection, source: RelationalTable
) -> dict[str, _Column]:
    """What the table declares, in its order."""
    try:
        described = connection.execute(f"describe {_table(source)}").fetchall()
    except duckdb.CatalogException:
        tables = connection.execute(
            "select distinct table_name from information_schema.tables"
            " where table_catalog = 'source' and table_schema not in"
            " ('information_schema', 'pg_catalog') order by table_name limit 20"
        ).fetchall()
        raise MendableError(
            f"{source.system}.{source.table}",
            expected=f"a table of that name{f' in {source.schema}' if source.schema else ''}",
            arrived=", ".join(name for (name,) in tables) or "a database without tables",
            mend=f"restore the table at the source, or check {source.url_setting}",
        ) from None
    sqlite = _is_sqlite(source.url)
    if sqlite:
        connection.execute("set sqlite_all_varchar = true")
    return {name: _Column(kind, sqlite or null == "YES") for name, kind, null, *_ in described}


_UNAVAILABLE = {
    "authentication failed": "it refused the user or the password",
    "could not translate host name": "there is no host of that name",
    "Connection refused": "nothing listens there",
    "timeout expired": f"no answer within {TIMEOUT_SECONDS} s",
    "database is locked": f"another program kept it locked for {TIMEOUT_SECONDS} s",
}
_UNREADABLE = {
    "permission denied": "this user may not read it",
    "does not exist": "there is no database or user of that name",
    "file is not a database": "a file that is not an SQLite database",
    "malformed": "a damaged SQLite file",
    "unable to open": "a file that this user may not open",
    "Invalid UTF8": "a text that is not UTF-8",
    "Invalid unicode": "a text that is not UTF-8",
}


@contextmanager
def _named_errors(source: RelationalTable) -> Iterator[None]:
    """Replace DuckDB's errors: their text can hold the URL with its password, or a row's values."""
    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        text, sqlite = str(error), _is_sqlite(source.url)
        where = "the SQLite file" if sqlite else f"PostgreSQL at {address(source.url)}"
        thing = f"{source.system}.{source.table} ({where})"
        for phrase, arrived in _UNREADABLE.items():
            if phrase in text:
                raise MendableError(
                    thing,
                    expected="a table this user can read",
                    arrived=arrived,
                    mend=f"put that right at the source, or set {source.url_setting} to another",
                ) from None
        arrived = next((said for phrase, said in _UNAVAILABLE.items() if phrase in text), "")
        lost = type(error) in (duckdb.Error, duckdb.IOException, OSError) and not sqlite
        if arrived or lost:
            raise SourceUnavailableError(
                thing,
                expected="a database that answers",
                arrived=arrived or "no connection, or it broke off",
                mend=f"start the database or mend {source.url_setting} in .env, then run again",
            ) from None
        raise MendableError(
            thing,
            expected="values that DuckDB can read",
            arrived=f"{type(error).__name__} (its text is withheld: it can quote a row)",
            mend=f"look for the value in {source.table} with the database's own shell",
        ) from None
