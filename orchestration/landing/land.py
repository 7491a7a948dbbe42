"""Land batches: rows, quarantine, ledger line and new position in one transaction."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestration.connectors import Batch, Position
from orchestration.contracts import version_of
from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.landing.checking import check, sql_types
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect, transaction, writing

if TYPE_CHECKING:
    import duckdb
    import pandera.polars as pa
    import polars as pl

_STAMPS = "_loaded_at timestamp, _batch_id varchar, _source_position varchar"
_TABLES = """
create schema if not exists landing;
create schema if not exists raw;
create schema if not exists quarantine;
create table if not exists landing.ledger (
    table_name varchar, batch_id varchar, rows_in bigint, rows_kept bigint,
    rows_quarantined bigint, rows_deduplicated bigint, seconds double,
    contract_version varchar, source_position varchar, loaded_at timestamp
);
create table if not exists landing.positions (
    table_name varchar, commits bigint, source_position varchar, data_version varchar
);
"""


@dataclass(frozen=True)
class RawTable:
    """A raw table and how it is filled.

    Attributes:
        name: `<source_system>__<entity>`, its name in the schemas `raw` and `quarantine`.
        contract: what every row must hold.
        cursor: the column by which it grows; None when every load replaces the whole table.
    """

    name: str
    contract: pa.DataFrameSchema
    cursor: str | None = None


@dataclass
class Landed:
    """What one load did. `rows_in == rows_kept + rows_quarantined + rows_deduplicated`, always.

    `rows_total` and `data_version` are the raw table's after the load; `reasons` counts why rows were
    quarantined; `unexpected_columns` stand at the source but not in the contract.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rows_quarantined: int = 0
    rows_deduplicated: int = 0
    batches: int = 0
    seconds: float = 0.0
    rows_total: int = 0
    data_version: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    unexpected_columns: tuple[str, ...] = ()


def land(
    settings: Settings,
    table: RawTable,
    read: Callable[[Position], Iterator[Batch]],
    progress: Callable[[str], None] = lambda message: None,
) -> Landed:
    """Read what is new from a source and land it.

    A table with a cursor commits batch by batch, so a crash resumes after the last one; a table
    without is replaced in one transaction. Either way a crash leaves the warehouse as it was
    before the transaction, and running again is always safe.

    Args:
        settings: which warehouse.
        table: the raw table.
        read: the connector: given the last landed position, yields what comes after it. A table
            without a cursor comes whole, or as `unchanged_rows` at the position it had.
        progress: told once per batch.

    Raises:
        MendableError: the source or its rows are not as the contract says, or another loader
            moved the position meanwhile. Nothing of the batch was loaded.
    """
    landed = Landed()
    import pyarrow

    connection = connect(settings)
    try:
        with writing(settings, f"preparing raw.{table.name}"):
            _create_tables(connection, table)
        commits, position = _position(connection, table)
        batches = read(position)
        if table.cursor is not None:
            for batch in batches:
                with writing(settings, f"landing raw.{table.name}"), transaction(connection):
                    _commit(connection, table, commits, batch, landed)
                commits += 1
                progress(f"raw.{table.name}: {landed.rows_kept:,} rows landed")
        else:
            with writing(settings, f"landing raw.{table.name}"), transaction(connection):
                for batch in batches:
                    replaced = batch.position != position
                    if replaced and landed.batches == 0:
                        connection.execute(f"delete from raw.{quoted(table.name)}")
                        connection.execute(f"delete from quarantine.{quoted(table.name)}")
                    _commit(connection, table, commits, batch, landed, replaced=replaced)
                    commits += 1
                    progress(f"raw.{table.name}: {landed.rows_kept:,} rows landed")
        if landed.batches == 0:
            # That the source was asked, and had nothing new, is a fact for the ledger too.
            nothing = Batch(rows=pyarrow.table({}), position=position)
            with writing(settings, f"landing raw.{table.name}"), transaction(connection):
                _commit(connection, table, commits, nothing, landed)
        landed.rows_total, landed.data_version = _one(
            connection,
            f"select (select count(*) from raw.{quoted(table.name)}), data_version"
            f" from landing.positions where table_name = {literal(table.name)}",
        )
        return landed
    finally:
        connection.close()


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None, sql
    return row


def _create_tables(connection: duckdb.DuckDBPyConnection, table: RawTable) -> None:
    columns = ", ".join(f"{quoted(n)} {kind}" for n, kind in sql_types(table.contract).items())
    name = quoted(table.name)
    with transaction(connection):
        connection.execute(_TABLES)
        connection.execute(f"create table if not exists raw.{name} ({columns}, {_STAMPS})")
        connection.execute(
            f"create table if not exists quarantine.{name}"
            f" ({_STAMPS}, reason varchar, payload varchar)"
        )
        connection.execute(
            f"""
            insert into landing.positions
            select {literal(table.name)}, 0, '{{}}', 'empty'
            where not exists (
                select 1 from landing.positions where table_name = {literal(table.name)}
            )
            """
        )


def _position(connection: duckdb.DuckDBPyConnection, table: RawTable) -> tuple[int, Position]:
    commits, position = _one(
        connection,
        "select commits, source_position from landing.positions"
        f" where table_name = {literal(table.name)}",
    )
    return commits, json.loads(position)


def _commit(
    connection: duckdb.DuckDBPyConnection,
    table: RawTable,
    commits: int,
    batch: Batch,
    landed: Landed,
    *,
    replaced: bool = False,
) -> None:
    """Write one batch inside the caller's transaction and add it to `landed`.

    `replaced` says that the table was emptied for it: then it has changed even when no row is kept.
    """
    started = time.perf_counter()
    position = json.dumps(batch.position, sort_keys=True)
    batch_id = hashlib.sha256(f"{table.name}|{commits}|{position}".encode()).hexdigest()[:16]
    stamps = [datetime.now(UTC).replace(tzinfo=None), batch_id, position]

    rows_in = batch.rows.num_rows + batch.unchanged_rows
    rows_kept = rows_quarantined = 0
    rows_deduplicated = batch.unchanged_rows
    if batch.rows.num_rows:
        checked = check(connection, table.contract, batch.rows)
        landed.reasons.update(checked.bad["reason"].to_list())
        rows_kept = _insert_good(connection, table, checked.good, stamps)
        rows_quarantined = _insert_bad(connection, table, checked.bad, stamps)
        rows_deduplicated += checked.good.height - rows_kept + checked.bad.height - rows_quarantined
    changed = rows_kept > 0 or replaced
    moved = connection.execute(
        f"""
        update landing.positions set commits = commits + 1, source_position = ?
        {", data_version = ?" if changed else ""}
        where table_name = ? and commits = ?
        """,
        [position, *([batch_id] if changed else []), table.name, commits],
    )
    if _changed_rows(moved) != 1:
        raise MendableError(
            f"the position of raw.{table.name}",
            expected=f"to still stand at commit {commits}",
            arrived="another load has moved it meanwhile",
            mend="nothing was lost: run the load again once the other has finished",
        )
    seconds = time.perf_counter() - started
    connection.execute(
        "insert into landing.ledger values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            f"raw.{table.name}", batch_id, rows_in, rows_kept, rows_quarantined,
            rows_deduplicated, seconds, version_of(table.contract), position, stamps[0],
        ],
    )  # fmt: skip
    landed.rows_in += rows_in
    landed.rows_kept += rows_kept
    landed.rows_quarantined += rows_quarantined
    landed.rows_deduplicated += rows_deduplicated
    landed.unexpected_columns = batch.unexpected_columns
    landed.batches += 1
    landed.seconds += seconds


def _insert_good(
    connection: duckdb.DuckDBPyConnection, table: RawTable, good: pl.DataFrame, stamps: list[Any]
) -> int:
    """Insert the rows that are not known yet; returns how many.

    A row is known when an equal row came earlier in the batch or has landed before. A record that
    changed at the source is not: it lands as a new version of its key, and staging takes the last.
    """
    if good.is_empty():
        return 0
    name = quoted(table.name)
    listed = ", ".join(map(quoted, good.columns))
    known = ""
    if table.cursor is not None:
        same = " and ".join(
            f"old.{quoted(c)} is not distinct from new.{quoted(c)}" for c in good.columns
        )
        # Only rows at or after the batch's first cursor value can be known.
        known = (
            f"where not exists (select 1 from raw.{name} as old where {same}"
            f" and old.{quoted(table.cursor)} >= {literal(str(good[table.cursor].min()))})"
        )
    connection.register("good", good.to_arrow())
    try:
        return _changed_rows(
            connection.execute(
                f"insert into raw.{name} select {listed}, ?, ?, ?"
                f" from (select distinct {listed} from good) as new {known}",
                stamps,
            )
        )
    finally:
        connection.unregister("good")


def _insert_bad(
    connection: duckdb.DuckDBPyConnection, table: RawTable, bad: pl.DataFrame, stamps: list[Any]
) -> int:
    """Quarantine the rows that are not there yet, with reason and payload; returns how many."""
    if bad.is_empty():
        return 0
    name = quoted(table.name)
    connection.register("bad", bad.to_arrow())
    try:
        return _changed_rows(
            connection.execute(
                f"""
                insert into quarantine.{name}
                select ?, ?, ?, reason, payload from (select distinct reason, payload from bad) as new
                where not exists (select 1 from quarantine.{name} as old where old.payload = new.payload)
                """,
                stamps,
            )
        )
    finally:
        connection.unregister("bad")


def _changed_rows(result: duckdb.DuckDBPyConnection) -> int:
    row = result.fetchone()
    return int(row[0]) if row else 0
