"""Frames in and out of the warehouse, for the steps that are Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import quoted
from orchestration.settings import Settings
from orchestration.warehouse.connect import ALIAS, transaction, writing

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_CATALOG = f"__ducklake_metadata_{ALIAS}"
WRITES = f"""
    select coalesce(s.schema_name || '.' || t.table_name, told.what) as name, told.snapshot_id, told.snapshot_time
    from (
        select snapshot_id, snapshot_time, unnest(flatten([
            changes[change] for change in map_keys(changes)
            if change not in ('merge_adjacent', 'rewrite_delete', 'inline_flush', 'flushed_inlined')
        ])) as what
        from snapshots()
    ) as told
    left join {_CATALOG}.ducklake_table as t
        on told.what = cast(t.table_id as varchar)
        and told.snapshot_id >= t.begin_snapshot and told.snapshot_id < coalesce(t.end_snapshot, 1e18)
    left join {_CATALOG}.ducklake_schema as s on t.schema_id = s.schema_id
"""
"""Which table was written in which snapshot: created ones are told by their names, changed ones by their numbers.

Files that were merged or rewritten hold the same rows; that is no writing."""


def read_frame(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None
) -> pl.DataFrame:
    """The rows of a query as a polars frame."""
    import polars as pl

    return pl.DataFrame(connection.execute(sql, parameters).to_arrow_table())


def table_exists(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> bool:
    """Whether `schema.table` is in the warehouse."""
    import duckdb

    try:  # the lists of all tables and columns take ten times as long
        connection.execute(f"describe {quoted(schema)}.{quoted(table)}")
    except duckdb.CatalogException:
        return False
    return True


def current_snapshot(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the latest snapshot: `select ... at (version => n)` reads it again."""
    row = connection.execute("select max(snapshot_id) from snapshots()").fetchone()
    assert row is not None
    return int(row[0])


def replace_part(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    frames: dict[str, pl.DataFrame],
    *,
    where: str,
    equals: Any,
) -> None:
    """Replace, in one transaction, the rows of each table in which `where` equals the value.

    Args:
        connection: a writing connection to the warehouse.
        settings: which warehouse, for the writer's lock.
        frames: `schema.table` to its new rows; a table that is absent is created with their types.
        where: the column that names the part, such as `as_of_at`.
        equals: the part's value.
    """
    with writing(settings, f"writing {', '.join(frames)}"), transaction(connection):
        for name, frame in frames.items():
            schema, _, table = name.partition(".")
            target = f"{quoted(schema)}.{quoted(table)}"
            connection.execute(f"create schema if not exists {quoted(schema)}")
            connection.register("replacement", frame.to_arrow())
            connection.execute(
                f"create table if not exists {target} as select * from replacement limit 0"
            )
            connection.execute(f"delete from {target} where {quoted(where)} = ?", [equals])
            connection.execute(f"insert into {target} by name select * from replacement")
            connection.unregister("replacement")
