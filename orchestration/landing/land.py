"""Land batches: rows, quarantine, ledger line and new position in one transaction."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestration.connectors import SOURCE_POSITION, Batch, Position, Whole
from orchestration.contracts.raw import version_of
from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.landing.checking import (
    DELETED,
    STAMPS,
    Change,
    Checked,
    Drift,
    check,
    sql_types,
)
from orchestration.landing.keeping_out import KeepOut
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect, transaction, writing

if TYPE_CHECKING:
    import duckdb
    import pandera.polars as pa
    import pyarrow

_STAMPS = ", ".join(f"{name} {kind.lower()}" for name, kind in STAMPS.items())
_TABLES = """
create schema if not exists landing;
create schema if not exists raw;
create schema if not exists quarantine;
create table if not exists landing.ledger (
    table_name varchar, batch_id varchar, rows_in bigint, rows_kept bigint,
    rows_quarantined bigint, rows_deduplicated bigint, seconds double,
    contract_version varchar, source_position varchar, loaded_at timestamp, gap_days integer
);
create table if not exists landing.positions (
    table_name varchar, commits bigint, source_position varchar, data_version varchar
);
create table if not exists landing.days (
    table_name varchar, batch_id varchar, day date, rows_arrived bigint
);
create table if not exists landing.schema_changes (
    table_name varchar, batch_id varchar, column_name varchar, change varchar,
    from_type varchar, to_type varchar, drift_policy varchar, loaded_at timestamp
);
"""
_TRIES = 6
"""How often a transaction is tried that loses against another writer on a PostgreSQL catalog."""


@dataclass(frozen=True)
class RawTable:
    """A raw table and how it is filled.

    Attributes:
        name: `<source_system>__<entity>`, its name in the schemas `raw` and `quarantine`.
        contract: what every row must hold.
        cursor: the column by which it grows, if there is one.
        key: the columns that identify a row at the source; needed to see deletions.
        drift: what happens to rows that are not of the contract's shape.
        deletes: whether rows that are gone at the source are marked with `_is_deleted`.
        gap_days: days without a row, by the cursor, that count as a gap; None: there are none.
    """

    name: str
    contract: pa.DataFrameSchema
    cursor: str | None = None
    key: tuple[str, ...] = ()
    drift: Drift = "evolve"
    deletes: bool = False
    gap_days: int | None = None


@dataclass
class Landed:
    """What one load did. `rows_in == rows_kept + rows_quarantined + rows_deduplicated`, always.

    `rows_total` and `data_version` are the raw table's after the load; `reasons` counts why rows were
    quarantined; `changes` is how the table's shape changed, or what of it did not arrive; `adds_up`
    says that this sum holds in every line of the table's ledger, and that no batch in it has more
    rows than its line says.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rows_quarantined: int = 0
    rows_deduplicated: int = 0
    transactions: int = 0
    seconds: float = 0.0
    rows_total: int = 0
    data_version: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)
    adds_up: bool = True


def land(
    settings: Settings,
    table: RawTable,
    read: Callable[[Position], Iterator[Batch]],
    progress: Callable[[str], None] = lambda message: None,
    *,
    read_ahead: bool = True,
) -> Landed:
    """Read what is new from a source and land it, a transaction at a time.

    A transaction ends with a batch that `completes`; it holds the rows, the quarantined rows, the
    ledger line and the new position. So a crash leaves the warehouse as it was before the
    transaction, and running again is always safe.

    Args:
        settings: which warehouse.
        table: the raw table.
        read: the connector: given the last landed position, yields what comes after it.
        progress: told once per transaction.
        read_ahead: read a batch while the one before it lands; not where the next may never come.

    Raises:
        MendableError: the source or its rows are not as the contract says, or another loader
            moved the position meanwhile. Nothing of the transaction was loaded.
    """
    import pyarrow

    landed = Landed()
    connection = connect(settings)
    try:
        connection.execute("set TimeZone = 'UTC'")
        with writing(settings, f"preparing raw.{table.name}"):
            _create_tables(connection, table)
        commits, position = _position(connection, table)
        batches = _read_ahead(read(position)) if read_ahead else read(position)
        for batch in batches:
            _transact(settings, connection, table, commits, batch, batches, landed)
            commits += 1
            progress(f"raw.{table.name}: {landed.rows_kept:,} rows landed")
        if landed.transactions == 0:
            # That the source was asked, and had nothing new, is a fact for the ledger too.
            nothing = Batch(rows=pyarrow.table({}), position=position)
            _transact(settings, connection, table, commits, nothing, batches, landed)
        landed.rows_total, landed.data_version = _one(
            connection,
            f"select (select count(*) from raw.{quoted(table.name)}), data_version"
            f" from landing.positions where table_name = {literal(table.name)}",
        )
        (landed.adds_up,) = _one(
            connection,
            f"""
            with ledger as (
                select * from landing.ledger where table_name = {literal(f"raw.{table.name}")}
            ),
            batches as (
                select _batch_id, count(*) as rows_there from raw.{quoted(table.name)} group by 1
            )
            select
                not exists (
                    from ledger where rows_in <> rows_kept + rows_quarantined + rows_deduplicated
                )
                and not exists (
                    from batches left join ledger on batch_id = _batch_id
                    where rows_there > coalesce(rows_kept, 0)
                )
            """,
        )
        return landed
    finally:
        connection.close()


def _read_ahead(batches: Iterator[Batch]) -> Generator[Batch]:
    """The batches, each read while the one before it lands: source and warehouse do not wait in turn.

    At most one is read ahead, which bounds memory. A batch with keys still reads from the source.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, "read-ahead") as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            if batch.present_keys is not None:
                yield batch
            following = reader.submit(next, batches, None)
            if batch.present_keys is None:
                yield batch


def _transact(
    settings: Settings,
    connection: duckdb.DuckDBPyConnection,
    table: RawTable,
    commits: int,
    first: Batch,
    rest: Iterator[Batch],
    landed: Landed,
) -> None:
    """Land `first`, and what follows it up to the batch that completes it, in one transaction.

    On a PostgreSQL catalog another writer can win; then nothing was written. The rows of a single
    batch are still at hand and are tried again; those of several are read again by the next load.
    """
    import duckdb

    for attempt in range(1, _TRIES + 1):
        try:
            with writing(settings, f"landing raw.{table.name}"), transaction(connection):
                load = _Load(settings, connection, table, commits, first)
                batch = first
                load.add(batch)
                while not batch.completes:
                    following = next(rest, None)
                    if following is None:
                        raise RuntimeError(f"raw.{table.name}: the source's last batch is missing")
                    batch = following
                    load.add(batch)
                load.finish(batch)
        except duckdb.IOException as error:  # an HTTP error is one of these
            local = "://" not in settings.lake_path
            raise MendableError(
                f"the lake at {settings.lake_path}",
                expected="a place that takes files",
                arrived=str(error).splitlines()[0] if local else type(error).__name__,
                mend="make room and check its permissions"
                if local
                else "check AWS_ENDPOINT_URL and the credentials; nothing was written",
            ) from None
        except duckdb.TransactionException as error:
            if attempt == _TRIES or not first.completes:
                raise WarehouseBusyError(
                    f"raw.{table.name}",
                    expected="to commit beside the warehouse's other writers",
                    arrived=f"{type(error).__name__} after {attempt} tries",
                    mend="nothing was written: run the load again",
                ) from None
            time.sleep(random.uniform(0.05, 0.1) * 2**attempt)
        else:
            load.add_to(landed)
            return


class _Load:
    """One transaction's work on a raw table: between its beginning and its commit."""

    def __init__(
        self,
        settings: Settings,
        connection: duckdb.DuckDBPyConnection,
        table: RawTable,
        commits: int,
        first: Batch,
    ) -> None:
        self.connection, self.table, self.commits = connection, table, commits
        self.name = quoted(table.name)
        self.started = time.perf_counter()
        position = json.dumps(first.position, sort_keys=True)
        self.where = first.where or position
        identity = f"{table.name}|{commits}|{self.where}|{position}"
        self.batch_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.loaded_at = datetime.now(UTC).replace(tzinfo=None)
        self.types = self._types()
        self.keep_out = KeepOut(settings, connection, f"raw.{table.name}")
        self.rows_in = self.rows_kept = self.rows_quarantined = self.rows_deduplicated = 0
        self.reasons: Counter[str] = Counter()
        self.changes: list[Change] = []
        self.replaces, self.replaced = first.replaces, False
        self.misfit: str | None = None
        self.set_aside: set[str] = set()

    def add(self, batch: Batch) -> None:
        """Write a batch's rows, good and bad."""
        self.rows_in += batch.unchanged_rows
        self.rows_deduplicated += batch.unchanged_rows
        where = batch.where or self.where
        checked = None
        if batch.rows.num_rows and self.misfit is None:
            try:
                checked = check(
                    self.connection,
                    self.table.contract,
                    batch.rows,
                    drift=self.table.drift,
                    types=self.types,
                    may_widen=self._may_widen,
                    as_text=batch.as_text,
                )
            except MendableError as error:
                if not batch.separable:
                    raise
                self.misfit = f"{error.thing}: expected {error.expected}; arrived: {error.arrived}"
        if self.misfit is None:
            self._replace()
        else:
            self._set_aside(self.misfit, where, batch)
        if batch.rejected is not None and batch.rejected.num_rows:
            self._add_bad(self.keep_out.from_bad(batch.rejected), where, batch)
        if checked is not None:
            self._change(checked)
            good, forgotten = self.keep_out.from_good(checked.good)
            self.rows_in += good.num_rows
            kept = self._insert_good(good, where, batch)
            self.rows_kept += kept
            self.rows_deduplicated += good.num_rows - kept
            self._add_bad(forgotten, where, batch)
            self._add_bad(self.keep_out.from_bad(checked.bad), where, batch)
        if batch.present_keys is not None:
            marked = self._mark_deleted(batch.present_keys)
            self.rows_in += marked
            self.rows_kept += marked

    def finish(self, last: Batch) -> None:
        """Move the position, which fences off any other loader, and write the ledger line."""
        changed = self.rows_kept > 0 or self.replaced
        moved = self.connection.execute(
            f"""
            update landing.positions set commits = commits + 1, source_position = ?
            {", data_version = ?" if changed else ""}
            where table_name = ? and commits = ?
            """,
            [
                json.dumps(last.position, sort_keys=True),
                *([self.batch_id] if changed else []),
                self.table.name,
                self.commits,
            ],
        )
        if _changed_rows(moved) != 1:
            raise MendableError(
                f"the position of raw.{self.table.name}",
                expected=f"to still stand at commit {self.commits}",
                arrived="another load has moved it meanwhile",
                mend="nothing was lost: run the load again once the other has finished",
            )
        self.seconds = time.perf_counter() - self.started
        self.connection.execute(
            "insert into landing.ledger values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                f"raw.{self.table.name}", self.batch_id, self.rows_in, self.rows_kept,
                self.rows_quarantined, self.rows_deduplicated, self.seconds,
                version_of(self.table.contract), last.where or self.where, self.loaded_at,
                self.table.gap_days,
            ],
        )  # fmt: skip

    def add_to(self, landed: Landed) -> None:
        """Count this transaction, which has been committed, into what the load did."""
        landed.rows_in += self.rows_in
        landed.rows_kept += self.rows_kept
        landed.rows_quarantined += self.rows_quarantined
        landed.rows_deduplicated += self.rows_deduplicated
        landed.reasons.update(self.reasons)
        landed.changes += [change for change in self.changes if change not in landed.changes]
        landed.seconds += self.seconds
        landed.transactions += 1

    def _types(self) -> dict[str, str]:
        """The raw table's columns as they are, the contract's first."""
        described = self.connection.execute(f"describe raw.{self.name}").fetchall()
        return {
            name: kind for name, kind, *_ in described if name not in STAMPS and name != DELETED
        }

    def _replace(self) -> None:
        """Remove the rows whose place the new ones take, once these are known to fit."""
        if not self.replaces:
            return
        for schema in ("raw", "quarantine"):
            removed = self.connection.execute(
                f"delete from {schema}.{self.name} where {self._outdated(schema)}"
            )
            self.replaced |= _changed_rows(removed) > 0
        self.replaces = ()

    def _outdated(self, schema: str) -> str:
        """SQL that is true for the rows that are still to be replaced."""
        if self.replaces is Whole.TABLE:
            return "true"
        if not self.replaces:
            return "false"
        places = ", ".join(map(literal, self.replaces))
        condition = f"{SOURCE_POSITION} in ({places})"
        if schema == "quarantine":  # where a place may be a line of a file
            condition += f" or regexp_replace({SOURCE_POSITION}, ':[0-9]+$', '') in ({places})"
        return condition

    def _may_widen(self, column: str, to: str) -> bool:
        """A float cannot hold the integers beyond 2^53 that a column may already have."""
        if to != "DOUBLE":
            return True
        (largest,) = _one(
            self.connection,
            f"select max(abs({quoted(column)})) from raw.{self.name} where not ({self._outdated('raw')})",
        )
        return largest is None or largest <= 2**53

    def _change(self, checked: Checked) -> None:
        """Give the raw table the shape that the checked rows need, and write down what changed."""
        for change in checked.changes:
            column, kind = quoted(change.column), change.to_type
            if change.change == "added":
                self.connection.execute(f"alter table raw.{self.name} add column {column} {kind}")
            elif change.change == "widened" and kind == "VARCHAR":
                old = quoted(f"_{change.column}_before")
                for statement in (
                    f"rename column {column} to {old}",
                    f"add column {column} varchar",
                ):
                    self.connection.execute(f"alter table raw.{self.name} {statement}")
                self.connection.execute(
                    f"update raw.{self.name} set {column} = cast({old} as varchar)"
                )
                self.connection.execute(f"alter table raw.{self.name} drop column {old}")
            elif change.change == "widened":
                self.connection.execute(
                    f"alter table raw.{self.name} alter column {column} type {kind}"
                )
            if change in self.changes:
                continue
            self.changes.append(change)
            if change.change != "absent":
                self.connection.execute(
                    "insert into landing.schema_changes values (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        f"raw.{self.table.name}", self.batch_id, change.column, change.change,
                        change.from_type, change.to_type, self.table.drift, self.loaded_at,
                    ],
                )  # fmt: skip
        self.types = checked.types

    def _set_aside(self, reason: str, where: str, batch: Batch) -> None:
        """Quarantine what the rows came from, each file as one line, instead of the rows."""
        import pyarrow

        if batch.rows.num_rows == 0:
            return
        places = {where}
        if SOURCE_POSITION in batch.rows.column_names:
            places = {place or where for place in batch.rows[SOURCE_POSITION].unique().to_pylist()}
        new = sorted(places - self.set_aside)
        self.set_aside |= places
        lines = pyarrow.table({"reason": [reason] * len(new), SOURCE_POSITION: new})
        self._add_bad(lines, where, batch)

    def _insert_good(self, good: pyarrow.Table, where: str, batch: Batch) -> int:
        """Insert the rows that are not known yet; returns how many.

        A row is known when an equal row came earlier in the batch or has landed before. A record
        that changed at the source is not: it lands as a new version of its key, and staging takes
        the last.
        """
        if good.num_rows == 0:
            return 0
        columns = [name for name in good.column_names if name != SOURCE_POSITION]
        listed = ", ".join(map(quoted, columns))
        own_position = SOURCE_POSITION in good.column_names
        cursor = self.table.cursor
        # DuckDB finds `good` and `bad` as the variables they are. What is registered in a
        # transaction it holds until the commit, so memory would grow with the table.
        rows, known = "good", ""
        if not batch.first_time:
            # A row that says itself where it stood is that very row wherever it comes again.
            same = [*columns, *([SOURCE_POSITION] if own_position else [])]
            rows = f"(select distinct {', '.join(map(quoted, same))} from good)"
            equal = " and ".join(
                f"old.{quoted(c)} is not distinct from new.{quoted(c)}" for c in same
            )
            known = f"where not exists (select 1 from {self._known()} as old where {equal})"
        position = f"new.{SOURCE_POSITION}" if own_position else "?"
        inserted = _changed_rows(
            self.connection.execute(
                f"insert into raw.{self.name} by name select {listed},"
                f" ?::timestamp as _loaded_at, ? as _batch_id, {position} as {SOURCE_POSITION}"
                f"{f', false as {DELETED}' if self.table.deletes else ''}"
                f" from {rows} as new {known}",
                [self.loaded_at, self.batch_id, *([] if own_position else [where])],
            )
        )
        if inserted and cursor is not None and self.types[cursor] in ("DATE", "TIMESTAMP"):
            self.connection.execute(
                f"insert into landing.days select ?, ?, cast({quoted(cursor)} as date),"
                f" count(*) from good where {quoted(cursor)} is not null group by 3",
                [f"raw.{self.table.name}", self.batch_id],
            )
        return inserted

    def _known(self) -> str:
        """What of the raw table the batch `good` can hold again, as SQL.

        Only rows at or after its first cursor value; and of a row that changed at the source and
        kept its cursor, the last version, so that one that changes back is seen.
        """
        known = f"raw.{self.name}"
        if self.table.cursor is not None:
            cursor = quoted(self.table.cursor)
            known = (
                f"(from {known} where {cursor} is null"
                f" or {cursor} >= (select min({cursor}) from good))"
            )
        if self.table.key:
            identity = dict.fromkeys((*self.table.key, *filter(None, [self.table.cursor])))
            known = (
                f"(from {known} qualify row_number() over"
                f" (partition by {', '.join(map(quoted, identity))} order by _loaded_at desc) = 1)"
            )
        return known

    def _add_bad(self, bad: pyarrow.Table, where: str, batch: Batch) -> None:
        """Quarantine the rows that are not there yet, with reason and payload, and count them."""
        if bad.num_rows == 0:
            return
        self.rows_in += bad.num_rows
        self.reasons.update(bad["reason"].to_pylist())
        payload = "payload" if "payload" in bad.column_names else "cast(null as varchar) as payload"
        raw = "raw" if "raw" in bad.column_names else "cast(null as blob) as raw"
        known = (
            ""
            if batch.first_time
            else f"""
            where not exists (
                select 1 from quarantine.{self.name} as old
                where old.payload is not distinct from new.payload
                and old.raw is not distinct from new.raw
                and (new.{SOURCE_POSITION} is null or old.{SOURCE_POSITION} = new.{SOURCE_POSITION})
            )
            """
        )
        distinct = "" if batch.first_time else "distinct"
        inserted = _changed_rows(
            self.connection.execute(
                f"""
                insert into quarantine.{self.name} by name
                select ?::timestamp as _loaded_at, ? as _batch_id, reason, payload, raw,
                    coalesce({SOURCE_POSITION}, ?) as {SOURCE_POSITION}
                from (select {distinct} reason, {payload}, {raw}, {SOURCE_POSITION} from bad) as new
                {known}
                """,
                [self.loaded_at, self.batch_id, where],
            )
        )
        self.rows_quarantined += inserted
        self.rows_deduplicated += bad.num_rows - inserted

    def _mark_deleted(self, present_keys: Any) -> int:
        """Add a row for every key that is gone at the source, and for every one that came back."""
        key, columns = [*map(quoted, self.table.key)], [*map(quoted, self.types)]
        order = (
            f"_loaded_at desc{f', {quoted(self.table.cursor)} desc' if self.table.cursor else ''}"
        )
        same = " and ".join(f"here.{k} is not distinct from latest.{k}" for k in key)
        self.connection.execute("create or replace temp table present as from present_keys")
        return _changed_rows(
            self.connection.execute(
                f"""
                insert into raw.{self.name} by name
                select {", ".join(columns)}, ?::timestamp as _loaded_at, ? as _batch_id,
                    {SOURCE_POSITION}, not {DELETED} as {DELETED}
                from (
                    select * from raw.{self.name}
                    qualify row_number() over (partition by {", ".join(key)} order by {order}) = 1
                ) as latest
                where exists (select 1 from temp.present as here where {same}) = {DELETED}
                """,
                [self.loaded_at, self.batch_id],
            )
        )


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None, sql
    return row


def _create_tables(connection: duckdb.DuckDBPyConnection, table: RawTable) -> None:
    """Create what is not there yet, and give the raw table what its contract has gained since."""
    types = sql_types(table.contract)
    name = quoted(table.name)
    deleted = f", {DELETED} boolean" if table.deletes else ""
    columns = ", ".join(f"{quoted(n)} {kind}" for n, kind in types.items())
    with transaction(connection):
        connection.execute(_TABLES)
        connection.execute(f"create table if not exists raw.{name} ({columns}, {_STAMPS}{deleted})")
        connection.execute(
            f"create table if not exists quarantine.{name}"
            f" ({_STAMPS}, reason varchar, payload varchar, raw blob)"
        )
        # Warehouses that were made before these columns were.
        connection.execute("alter table landing.ledger add column if not exists gap_days integer")
        connection.execute(f"alter table quarantine.{name} add column if not exists raw blob")
        connection.execute(
            f"""
            insert into landing.positions
            select {literal(table.name)}, 0, '{{}}', 'empty'
            where not exists (
                select 1 from landing.positions where table_name = {literal(table.name)}
            )
            """
        )
        there = {n: kind for n, kind, *_ in connection.execute(f"describe raw.{name}").fetchall()}
        for column, kind in types.items():
            if column not in there:
                connection.execute(f"alter table raw.{name} add column {quoted(column)} {kind}")
            elif there[column] != kind:
                _adopt(connection, table, column, there[column], kind)
        if table.deletes and DELETED not in there:
            connection.execute(f"alter table raw.{name} add column {DELETED} boolean default false")


def _adopt(
    connection: duckdb.DuckDBPyConnection, table: RawTable, column: str, there: str, kind: str
) -> None:
    """Widen a column to the contract's type; one that is wider already stays as it is."""
    import duckdb

    with_type = f"raw.{quoted(table.name)} alter column {quoted(column)} type {kind}"
    try:
        connection.execute(f"alter table {with_type}")
    except duckdb.Error:
        if _holds(there, kind):
            return
        raise MendableError(
            f"raw.{table.name}: column {column}",
            expected=f"{kind}, as its contract says now",
            arrived=f"{there}, which cannot become {kind} without loss",
            mend="change the contract back, or give the column another name in it",
        ) from None


def _holds(wide: str, narrow: str) -> bool:
    """Whether a column of type `wide` holds every value of type `narrow`."""
    ladder = ("INTEGER", "BIGINT", "DOUBLE")
    if wide in ladder and narrow in ladder:
        return ladder.index(wide) > ladder.index(narrow)
    if wide.startswith("DECIMAL") and narrow.startswith("DECIMAL"):
        return True  # it would not have been made longer otherwise
    return (wide, narrow) == ("TIMESTAMP", "DATE")


def _position(connection: duckdb.DuckDBPyConnection, table: RawTable) -> tuple[int, Position]:
    commits, position = _one(
        connection,
        "select commits, source_position from landing.positions"
        f" where table_name = {literal(table.name)}",
    )
    return commits, json.loads(position)


def _changed_rows(result: duckdb.DuckDBPyConnection) -> int:
    row = result.fetchone()
    return int(row[0]) if row else 0
