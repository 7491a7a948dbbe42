"""Reads tables of relational databases: SQLite, PostgreSQL, MySQL and MariaDB, through DuckDB's extensions.

A table **with a cursor**, a column that grows such as an id or a time of change, is read on from position
`{"cursor": "<value>"}`: everything before that value has been sent.

- Rows at the value itself are read again, because more of them may have come; with an `overlap`, so are
  the rows that far behind it, because they may have been committed late. Landing knows them again.
- Rows whose cursor is missing, unreadable, infinite or still in the future are read every time, and never
  become the position: one wrong date would otherwise hide all rows to come.
- The end of a read is fixed when it begins. Much to read is cut into ranges of the cursor, each landed
  whole and with a position of its own, so a crash costs one range. Only a first read, which knows that
  nothing was sent before, vouches for its rows (`first_time`); the others come in the cursor's order.
- With `deletes`, a last batch holds every key that the table has by then.
- A row that appears further behind the position than the overlap is not seen, until a span is reloaded.

A table **without a cursor** is read whole if it has changed: position `{"fingerprint": "<hash of the rows,
whatever their order>", "rows": <count>}`. All its batches are one transaction, which takes the place of
all that was there. The fingerprint is of the very rows that were sent.

Each statement sees the source at one moment. Values arrive typed, times with a zone as naive UTC. As text
come JSON, UUID, numbers that fit no decimal of 38 digits, and types that DuckDB does not know; SQLite does
not enforce the types it declares, so all but its blobs is text. A value that its type could only hold
changed, such as NaN in a decimal or MySQL's 0000-00-00, is not sent: its row is rejected, with the reason.
Rows are streamed from the source, so memory is bounded by the batch, not by the table. (DuckDB hands over
2,048 rows at the least: rows of a megabyte each take two gigabytes.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from orchestration.connectors import (
    Batch,
    Position,
    Span,
    Whole,
    address,
    rejected_rows,
    require_columns,
)
from orchestration.connectors.relational_dialects import (
    TIMEOUT_SECONDS,
    Column,
    Dialect,
    dialect_of,
)
from orchestration.duckdb_session import open_session
from orchestration.errors import MendableError, SourceUnavailableError

BATCH_ROWS = 122_880
BATCH_BYTES = 32 * 2**20
"""A batch ends at this many rows (a row group of DuckDB) or bytes; landing holds it about ten times over."""
RANGE_ROWS = 2_000_000
MAX_RANGES = 8
"""Reads of more rows than that are cut into ranges; each may cost the source a scan of the table."""

_EXACT = Context(prec=4000)
_VECTOR_ROWS = 2048  # DuckDB's unit of work: the least that it hands over at once
_BEGUN: Position = {"cursor": None}  # rows were sent, but none by which the cursor could advance
_WHOLE = "whole table"


@dataclass(frozen=True)
class RelationalTable:
    """A table of a relational database.

    Attributes:
        url: `sqlite:///path/to/file`, or `postgresql://user:password@host:port/database`, or the
            same with `mysql://` or `mariadb://`.
        table: the table's name; a view will do.
        system: the source system's short name, for errors.
        url_setting: the setting that holds `url`, for errors.
        cursor: the column by which the table grows, or None to read it whole.
        key: the columns that identify a row.
        columns: the columns that must be there. All others are sent as well.
        ignore: columns that are left at the source.
        overlap: how far behind the cursor rows may still be committed: for a time a duration such
            as `2 days`, for a number a number.
        deletes: whether to look for rows that are gone; needs `key`. A table without a cursor is
            replaced as a whole, so there they go by themselves.
        schema: the table's schema (in MySQL its database); None is the connection's default.

    Raises:
        MendableError: the description contradicts itself.
    """

    url: str = field(repr=False)
    table: str
    system: str
    url_setting: str
    cursor: str | None = None
    key: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    overlap: str | float | None = None
    deletes: bool = False
    schema: str | None = None

    def __post_init__(self) -> None:
        ignored = [n for n in self.ignore if n in (*self.columns, *self.key, self.cursor)]
        if ignored:
            raise _wrong(self, f"ignore {', '.join(ignored)}", "columns that nothing else names")
        if self.deletes and not self.key:
            raise _wrong(self, "deletes without a key", "the columns that identify a row, as `key`")
        if self.overlap is not None and self.cursor is None:
            raise _wrong(self, "an overlap without a cursor", "the column by which it grows")


def read(
    source: RelationalTable,
    position: Position,
    span: Span | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
    memory_limit: str = "256MB",
) -> Iterator[Batch]:
    """Read what came after `position`, or with `span` the rows whose cursor lies in it.

    Args:
        source: the table.
        position: where the last read ended; `{}` if nothing was ever sent.
        span: values of the cursor; it needs one.
        batch_rows: most rows in a batch.
        memory_limit: most memory DuckDB may use meanwhile; what needs more goes to disk.

    Raises:
        SourceUnavailableError: the database does not answer or refuses the login.
        MendableError: the file, the table or a column of it is missing or cannot be read.
    """
    dialect = dialect_of(source)
    with (
        open_session(memory_limit=memory_limit, extensions=[dialect.extension]) as connection,
        _named_errors(source, dialect),
    ):
        connection.execute("set TimeZone = 'UTC'")
        dialect.attach(connection)
        table = _Table(connection, source, dialect, batch_rows)
        if span is not None:
            yield from _span(table, position, span)
        elif source.cursor is None:
            yield from _whole(table, position)
        else:
            yield from _after(table, position)


def _whole(table: _Table, position: Position) -> Iterator[Batch]:
    every = table.dialect.select(_expressions(table.columns), table.columns)
    hashed = f"hash({', '.join(f'c{i}' for i in range(len(_expressions(table.columns))))})"
    shape = hashlib.sha256(repr([(c.name, c.sent) for c in table.columns]).encode()).hexdigest()

    def fingerprint(hashes: int, rows: int) -> Position:
        return {"fingerprint": f"{shape[:16]}{hashes % 2**64:016x}", "rows": rows}

    if "fingerprint" in position:
        hashes = rows = 0
        for arrived, _ in table.stream(f"select {hashed} as hash from ({every})"):
            hashes += pc.sum(arrived["hash"]).as_py() or 0
            rows += arrived.num_rows
        if fingerprint(hashes, rows) == position:
            yield Batch(pa.table({}), position, where=_WHOLE, unchanged_rows=rows)
            return
    hashes = rows = 0
    replaces: Whole | tuple[str, ...] = Whole.TABLE
    for arrived, last in table.stream(f"select *, {hashed} as hash from ({every})"):
        hashes += pc.sum(arrived["hash"]).as_py() or 0
        rows += arrived.num_rows
        fit, rejected = _fit(table.columns, arrived.drop_columns("hash"), table.source.key)
        yield Batch(
            fit,
            fingerprint(hashes, rows),
            where=_WHOLE,
            rejected=rejected,
            replaces=replaces,
            completes=last,
            first_time=True,
        )
        replaces = ()


def _after(table: _Table, position: Position) -> Iterator[Batch]:
    cursor = table.cursor
    first_time = not position
    standing = position or _BEGUN
    low = table.start(standing.get("cursor"))
    now = table.now() if cursor.order == "time" else ""
    readable = table.dialect.readable(cursor, now)

    past = "" if low is None else table.dialect.surely_before(cursor, str(low))
    rows, least, high = table.edges(_all(readable, table.compare(">=", low)), past)
    if high is not None:
        starts = [low, *table.cuts(rows, least, high)]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            upper = table.compare("<", end) or table.compare("<=", high)
            where = _all(readable, table.compare(">=", start), upper)
            standing = {"cursor": str(end or high)}
            yield from table.batches(
                where, standing, ordered=not first_time, first_time=first_time, without=past
            )
    if readable or cursor.nullable:
        where = f"{cursor.compared} is null{f' or not ({readable})' if readable else ''}"
        place = f"{cursor.name} missing, unreadable or in the future"
        sure = table.dialect.surely_before(cursor, now or None)
        yield from table.batches(where, standing, first_time=first_time, place=place, without=sure)
    if table.source.deletes:
        yield Batch(pa.table({}), standing, present_keys=table.keys())


def _span(table: _Table, position: Position, span: Span) -> Iterator[Batch]:
    if table.source.cursor is None:
        raise _wrong(table.source, "no cursor", "a cursor, by which to load a part of the table")
    start, end = (table.value(edge, "the range to load") for edge in (span.start, span.end))
    known = f"{table.cursor.compared} is not null"
    where = _all(known, table.compare(">=", start), table.compare("<", end))
    place = f"{table.cursor.name} from {start or 'the first'} to before {end or 'the end'}"
    # An empty position would have the next read vouch for rows that have just been sent.
    yield from table.batches(where, position or _BEGUN, ordered=True, place=place)


class _Table:
    """An attached table, ready to be read."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: RelationalTable,
        dialect: Dialect,
        batch_rows: int,
    ) -> None:
        self.connection, self.source, self.dialect = connection, source, dialect
        self.batch_rows = batch_rows
        columns = dialect.columns(connection)
        if not columns:
            tables = connection.execute(dialect.tables()).fetchall()
            raise MendableError(
                f"{source.system}.{source.table}",
                expected=f"a table of that name{f' in {source.schema}' if source.schema else ''}",
                arrived=", ".join(name for (name,) in tables) or "a database without tables",
                mend=f"restore the table at the source, or check {source.url_setting}",
            )
        needed = (*source.columns, *source.key, *filter(None, [source.cursor]))
        require_columns(
            source.system,
            source.table,
            expected=list(dict.fromkeys(needed)),
            arrived=[column.name for column in columns],
        )
        self.columns = [column for column in columns if column.name not in source.ignore]

    @property
    def cursor(self) -> Column:
        column = next(c for c in self.columns if c.name == self.source.cursor)
        if column.order is None:
            expected = "a column of integers, decimals, times or texts"
            raise _wrong(self.source, f"the cursor {column.name}, of another type", expected)
        return column

    def stream(self, sql: str) -> Iterator[tuple[pa.Table, bool]]:
        """The rows in bounded tables, each with whether it is the last; of no rows one, empty."""
        if self.dialect.locks:  # a read that waits for landing would keep writers out for that long
            self.connection.execute(f"create or replace temp table spool as {sql}")
            sql = "from spool"
        reader = self.connection.execute(sql).to_arrow_reader(min(_VECTOR_ROWS, self.batch_rows))
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for chunk in filter(len, reader):
            full = rows + chunk.num_rows > self.batch_rows or size + chunk.nbytes > BATCH_BYTES
            if held and full:
                yield pa.Table.from_batches(held), False
                held, rows, size = [], 0, 0
            held.append(chunk)
            rows += chunk.num_rows
            size += chunk.nbytes
        yield pa.Table.from_batches(held, reader.schema), True

    def batches(
        self,
        where: str,
        position: Position,
        *,
        ordered: bool = False,
        first_time: bool = False,
        place: str = "",
        without: str = "",
    ) -> Iterator[Batch]:
        """One transaction: the rows `where`, after which the source stands at `position`."""
        order = self.cursor.compared if ordered else ""
        sql = self.dialect.select(_expressions(self.columns), self.columns, where, order, without)
        for arrived, last in self.stream(sql):
            rows, rejected = _fit(self.columns, arrived, self.source.key)
            if arrived.num_rows:
                yield Batch(
                    rows,
                    position,
                    where=place,
                    rejected=rejected,
                    completes=last,
                    first_time=first_time,
                )

    def keys(self) -> pa.RecordBatchReader:
        """The keys that the table has now."""
        columns = [next(c for c in self.columns if c.name == name) for name in self.source.key]
        stream = self.stream(self.dialect.select(_expressions(columns), columns))
        first, _ = next(stream)

        def chunks() -> Iterator[pa.RecordBatch]:
            with _named_errors(self.source, self.dialect):
                yield from _fit(columns, first, ())[0].to_batches()
                for arrived, _ in stream:
                    yield from _fit(columns, arrived, ())[0].to_batches()

        schema = _fit(columns, first.slice(0, 0), ())[0].schema
        return pa.RecordBatchReader.from_batches(schema, chunks())

    def now(self) -> str:
        """The source's clock, as naive UTC."""
        sql = self.dialect.query(f"select {self.dialect.now} as c0")
        return str(self._one(f"select cast(c0 as varchar) from ({sql})")[0])

    def edges(self, where: str, without: str) -> tuple[int, Any, Any]:
        """How many rows there are `where`, their least and their greatest cursor."""
        x = self.cursor.compared
        extremes = [self.dialect.edge(self.cursor, f"{extreme}({x})") for extreme in ("min", "max")]
        sql = self.dialect.select(["count(*)", *extremes], [self.cursor], where, without=without)
        rows, least, high = self._one(
            f"select c0, cast(c1 as varchar), cast(c2 as varchar) from ({sql})"
        )
        return rows, self.value(least, "its cursor"), self.value(high, "its cursor")

    def cuts(self, rows: int, least: Any, high: Any) -> list[Any]:
        """Where to cut the cursor between `least` and `high`: evenly, however the rows lie."""
        count = min(MAX_RANGES, math.ceil(rows / RANGE_ROWS))
        if count < 2 or self.cursor.order == "text":
            return []
        cuts = [least + (high - least) * i / count for i in range(1, count)]
        if self.cursor.order == "integer":
            cuts = [Decimal(math.floor(cut)) for cut in cuts]
        return [cut for cut in dict.fromkeys(cuts) if least < cut <= high]

    def compare(self, operator: str, value: Any) -> str:
        """SQL that compares the cursor with a value; empty if there is none."""
        if value is None:
            return ""
        constant = self.dialect.constant(self.cursor, str(value))
        return f"{self.cursor.compared} {operator} {constant}"

    def value(self, text: Any, what: str) -> Any:
        """A cursor value to reckon with: a naive UTC datetime, a Decimal or a str; None stays None.

        Raises:
            MendableError: `text`, which `what` says the origin of, is no value of the cursor.
        """
        if text is None:
            return None
        try:
            if self.cursor.order == "time":
                time = datetime.fromisoformat(text)
                return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
            if self.cursor.order == "text":
                return text
            return _number(text)
        except (ValueError, TypeError):
            raise MendableError(
                f"{self.source.system}.{self.source.table}: {what}",
                expected=f"a value of its cursor {self.cursor.name}, such as"
                f" {'2020-01-31 18:00:00' if self.cursor.order == 'time' else '1000'}",
                arrived="a value of another kind (withheld)",
                mend="give it one, or name the cursor that it belongs to in"
                f" orchestration/defs/raw/{self.source.system}/defs.yaml",
            ) from None

    def start(self, known: Any) -> Any:
        """Where to read on: at the cursor value `known`, or the overlap before it."""
        value, order = self.value(known, "its position"), self.cursor.order
        overlap = self.source.overlap
        if overlap is None:
            return value
        distance: Any = None
        if order == "time" and not str(overlap).replace(".", "").isdigit():
            (distance,) = self._one("select try_cast(? as interval)", [str(overlap)])
        elif order in ("integer", "decimal"):
            distance = self.value(str(overlap), "its overlap")
        if distance is None or distance < distance * 0:
            expected = (
                "a duration such as `2 days` for a cursor of times, a number for one of numbers"
            )
            raise _wrong(self.source, f"overlap {overlap!r}", expected)
        if value is None:
            return None
        if order == "time":
            return value - min(distance, value - datetime.min)
        low = _EXACT.subtract(value, distance)
        return Decimal(math.floor(low)) if order == "integer" else low

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        row = self.connection.execute(sql, parameters).fetchone()
        assert row is not None
        return row


def _expressions(columns: Sequence[Column]) -> list[str]:
    """The values of `columns`, then the texts of those that are unfit to be sent."""
    return [
        *(column.sent for column in columns),
        *(f"case when {c.unfit} then {c.text} end" for c in columns if c.unfit),
    ]


def _fit(
    columns: Sequence[Column], arrived: pa.Table, key: Sequence[str]
) -> tuple[pa.Table, pa.Table | None]:
    """What `_expressions` brought: the rows, by the columns' names, and those that are unfit."""
    names = [column.name for column in columns]
    values = arrived.columns[: len(columns)]
    rows = pa.Table.from_arrays(values, names=names)
    rows.validate(full=True)  # a text that is not UTF-8 would crash other programs
    reasons: dict[int, list[str]] = {}
    guarded = [i for i, column in enumerate(columns) if column.unfit]
    texts = dict(zip(guarded, arrived.columns[len(columns) :], strict=True))
    for i, unfit in texts.items():
        for row in pc.indices_nonzero(unfit.is_valid()).to_pylist():
            reasons.setdefault(row, []).append(f"{names[i]}: {columns[i].reason}")
    if not reasons:
        return rows, None
    at = pa.array(sorted(reasons))
    shown = [_texts(value.take(at)) for value in values]
    for i, unfit in texts.items():
        pairs = zip(unfit.take(at).to_pylist(), shown[i], strict=True)
        shown[i] = [text if bad is None else bad for bad, text in pairs]
    bad = [dict(zip(names, row, strict=True)) for row in zip(*shown, strict=True)]
    rejected = rejected_rows(
        ["; ".join(reasons[row]) for row in at.to_pylist()],
        [json.dumps(row, ensure_ascii=False).encode() for row in bad],
        [json.dumps([row[name] for name in key]) for row in bad],
    )
    return rows.filter(pc.invert(pc.is_in(pa.array(range(rows.num_rows)), at))), rejected


def _texts(values: pa.ChunkedArray) -> list[str | None]:
    """Values to be looked at."""
    if pa.types.is_nested(values.type):
        return [None if value is None else str(value) for value in values.to_pylist()]
    if pa.types.is_binary(values.type):
        arrived = values.to_pylist()
        return [None if v is None else v.decode(errors="backslashreplace") for v in arrived]
    texts: list[str | None] = values.cast(pa.string()).to_pylist()
    return texts


def _all(*conditions: str) -> str:
    return " and ".join(f"({condition})" for condition in conditions if condition)


def _number(text: str) -> Decimal:
    """A number of a size that a database can hold; ValueError if it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError from None
    if not number.is_finite() or abs(number.adjusted()) > 1000:
        raise ValueError
    return number


def _wrong(source: RelationalTable, arrived: str, expected: str) -> MendableError:
    return MendableError(
        f"{source.system}.{source.table}: its description",
        expected=expected,
        arrived=arrived,
        mend=f"change it in orchestration/defs/raw/{source.system}/defs.yaml",
    )


_UNAVAILABLE = {
    "authentication failed": "it refused the user or the password",
    "Access denied": "it refused the user or the password",
    "could not translate host name": "there is no host of that name",
    "Name or service not known": "there is no host of that name",
    "Connection refused": "nothing listens there",
    "timeout expired": f"no answer within {TIMEOUT_SECONDS} s",
    "timed out": f"no answer within {TIMEOUT_SECONDS} s",
    "database is locked": f"another program kept it locked for {TIMEOUT_SECONDS} s",
}
_UNREADABLE = {
    "permission denied": "this user may not read it",
    "command denied": "this user may not read it",
    "does not exist": "there is no database or user of that name",
    "Unknown database": "there is no database of that name",
    "file is not a database": "a file that is not an SQLite database",
    "malformed": "a damaged SQLite file",
    "unable to open": "a file that this user may not open",
    "Invalid UTF8": "a text that is not UTF-8",
    "Invalid unicode": "a text that is not UTF-8",
}


@contextmanager
def _named_errors(source: RelationalTable, dialect: Dialect) -> Iterator[None]:
    """Replace DuckDB's errors: their text can hold the URL with its password, or a row's values."""
    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        text, is_file = str(error), dialect.name == "SQLite"
        where = "the SQLite file" if is_file else f"{dialect.name} at {address(source.url)}"
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
        lost = type(error) in (duckdb.Error, duckdb.IOException) or isinstance(error, OSError)
        if arrived or (lost and not is_file):
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
