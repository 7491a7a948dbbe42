"""The lineage graph: every column of every table, what it comes from, and what it touches.

Nothing is written down twice. What dbt builds is read off the SQL that it sends to DuckDB; what Python
builds told Dagster its columns when it was built; a raw table's columns are those of its source, and
the ledger says where that stood. Versions are the warehouse's snapshots and the releases that hold them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError
from orchestration.layers import LAYERS
from orchestration.lineage.query import Column, sources_of
from orchestration.settings import Settings

if TYPE_CHECKING:
    import duckdb

ROWS = "*"
"""Stands in a column's place for which rows a table has."""


@dataclass(frozen=True)
class Written:
    """The snapshot in which a table was last written; `release` is the first that holds it."""

    snapshot_id: int
    at: datetime
    release: str | None


@dataclass(frozen=True)
class Landed:
    """The last batch that brought a raw table rows, and where its source stood when last asked."""

    batch_id: str
    position: str
    asked_at: datetime


@dataclass
class Table:
    """A table, trained model or source.

    Attributes:
        name: `schema.name`, as in the warehouse.
        columns: column to type, in order.
        values: column to the columns that its values come from.
        rows: the columns that decide which rows it has.
        inputs: the tables it is made of.
        source: system, and table there, of a source.
        carried: column to those of its `values` that can be read off it.
        copied: column to the columns that it is, where nothing is computed.
    """

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    values: dict[str, set[Column]] = field(default_factory=dict)
    rows: set[Column] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    written: Written | None = None
    code_version: str | None = None
    data_version: str | None = None
    landed: Landed | None = None
    source: tuple[str, str] | None = None
    carried: dict[str, set[Column]] = field(default_factory=dict)
    copied: dict[str, set[Column]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """What a walk along the graph comes to.

    Attributes:
        start: where it began.
        is_down: whether it asked what is touched, not what it comes from.
        values: columns reached from value to value.
        rows: columns reached only because they decide which rows there are, or stand in such rows;
            `*` of a table of which nothing else is reached.
    """

    start: frozenset[Column]
    is_down: bool
    values: frozenset[Column]
    rows: frozenset[Column]


class Graph:
    """Tables by name, and walks from column to column."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = {
            table.name: table for table in sorted(tables, key=lambda t: (_layer(t.name), t.name))
        }

    def find(self, name: str) -> frozenset[Column]:
        """The columns that a name means: of a table all, with `*` for its rows.

        Args:
            name: `schema.table`, `schema.table.column`, or a source as `<system>.<table>[.<column>]`.

        Raises:
            MendableError: there is no such table or column.
        """
        first, _, rest = name.partition(".")
        table, _, column = rest.partition(".")
        found = self.tables.get(f"{first}.{table}") or self.tables.get(f"sources.{first}__{table}")
        if found is None:
            raise _unknown(name, "a table", f"{first}.{table}", self.tables)
        if not column:
            return frozenset((found.name, one) for one in (*found.columns, ROWS))
        if column not in found.columns:
            raise _unknown(name, f"a column of {found.name}", column, found.columns)
        return frozenset({(found.name, column)})

    def up(self, start: frozenset[Column]) -> Reached:
        """Everything that these columns come from."""
        return self._walk(start, self._sources, is_down=False)

    def down(self, start: frozenset[Column]) -> Reached:
        """Everything that changes, or may change, with these columns."""
        return self._walk(start, self._touched, is_down=True)

    def _walk(
        self,
        start: frozenset[Column],
        step: Callable[[Column, bool], set[Column]],
        *,
        is_down: bool,
    ) -> Reached:
        values = _closure(start, lambda column: step(column, False))
        everything = _closure(start, lambda column: step(column, True))
        by_column = {table for table, column in everything if column != ROWS}
        told = {
            (table, column)
            for table, column in everything - values
            if column != ROWS or table not in by_column
        }
        return Reached(start, is_down, frozenset(values), frozenset(told))

    def _sources(self, column: Column, by_rows: bool) -> set[Column]:
        table = self.tables.get(column[0])
        if table is None:
            return set()
        if not by_rows:
            return table.values.get(column[1], set())
        if column[1] == ROWS:
            return table.rows | {(name, ROWS) for name in table.inputs}
        return table.values.get(column[1], set()) | {(table.name, ROWS)}

    def _touched(self, column: Column, by_rows: bool) -> set[Column]:
        by_value, by_row = self._reversed
        touched = by_value.get(column, set())
        if not by_rows:
            return touched
        touched = touched | by_row.get(column, set())
        if column[1] == ROWS and column[0] in self.tables:
            touched |= {(column[0], one) for one in self.tables[column[0]].columns}
        return touched

    @cached_property
    def _reversed(self) -> tuple[dict[Column, set[Column]], dict[Column, set[Column]]]:
        by_value: dict[Column, set[Column]] = {}
        by_row: dict[Column, set[Column]] = {}
        for table in self.tables.values():
            for column, sources in table.values.items():
                for source in sources:
                    by_value.setdefault(source, set()).add((table.name, column))
            for source in table.rows | {(name, ROWS) for name in table.inputs}:
                by_row.setdefault(source, set()).add((table.name, ROWS))
        return by_value, by_row


def read_graph(settings: Settings) -> Graph:
    """The graph of the project's code and of what is in the warehouse now.

    Args:
        settings: which warehouse; it is only read.

    Raises:
        MendableError: there is no warehouse, or dbt cannot compile the project.
    """
    from orchestration.build import last_materialized, prepare_manifest
    from orchestration.warehouse.connect import connect

    manifest = json.loads(prepare_manifest("compile", "target/lineage").read_bytes())
    told = last_materialized(settings)
    with connect(settings, read_only=True) as connection:
        tables = {
            name: Table(name, columns) for name, columns in _columns(connection, manifest).items()
        }
        for name, written in _written(connection, tables).items():
            tables[name].written = written
        landed = _landed(connection)
    by_dbt = _add_dbt(tables, manifest)
    _add_sources(tables, landed)
    for name, one in told.items():
        table = tables.setdefault(name, Table(name))
        table.code_version, table.data_version = one.code_version, one.data_version
        if name in by_dbt or table.inputs:
            continue
        table.values = one.columns
        table.inputs = {*one.inputs, *(t for deps in one.columns.values() for t, _ in deps)}
        if not one.columns and not name.startswith("landing."):  # it may come from any
            table.rows = {(t, c) for t in table.inputs if t in tables for c in tables[t].columns}
    return Graph(tables.values())


def described_graph(manifest: dict[str, Any]) -> Graph:
    """The graph of what is written down, without a warehouse: what Python builds has columns, but no lineage.

    Args:
        manifest: dbt's, compiled.
    """
    tables = {name: Table(name, columns) for name, columns in _described(manifest).items()}
    _add_sources(tables, {})
    _add_dbt(tables, manifest)
    return Graph(tables.values())


def _columns(
    connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Columns and types of every table of a layer; as documented, where it has not been built."""
    found: dict[str, dict[str, str]] = {}
    for schema, table, column, kind in connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns()"
        " where database_name = current_database() and list_contains(?, schema_name)"
        " order by schema_name, table_name, column_index",
        [list(LAYERS)],
    ).fetchall():
        found.setdefault(f"{schema}.{table}", {})[column] = kind
    return _described(manifest, found)


def _described(
    manifest: dict[str, Any], found: dict[str, dict[str, str]] | None = None
) -> dict[str, dict[str, str]]:
    """Columns as dbt's files document them, added to those that were found."""
    found = {} if found is None else found
    for node in (*manifest["nodes"].values(), *manifest["sources"].values()):
        if node["resource_type"] in ("model", "seed") or (
            node["resource_type"] == "source" and node["columns"]
        ):
            columns = found.setdefault(name_of(node), {})
            for column, documented in node["columns"].items():
                columns.setdefault(column, documented.get("data_type") or "VARCHAR")
    return found


def _add_dbt(tables: dict[str, Table], manifest: dict[str, Any]) -> set[str]:
    """Give dbt's models what their SQL says; returns the names of what dbt builds."""
    columns = {name: table.columns for name, table in tables.items()}
    names = set()
    for node in manifest["nodes"].values():
        if node["resource_type"] not in ("model", "seed", "snapshot"):
            continue
        name = name_of(node)
        names.add(name)
        if node.get("compiled_code"):
            table = tables.setdefault(name, Table(name))
            try:
                found = sources_of(node["compiled_code"], columns)
            except MendableError as error:
                raise MendableError(
                    f"the lineage of {name}",
                    expected=error.expected, arrived=error.arrived, mend=error.mend,
                ) from None  # fmt: skip
            table.values, table.carried, table.copied = found.values, found.carried, found.copied
            table.rows, table.inputs = found.rows, found.tables
    return names


def name_of(node: dict[str, Any]) -> str:
    """Where a node of dbt's stands in the warehouse, `schema.name`."""
    return f"{node['schema']}.{node.get('alias') or node.get('identifier') or node['name']}"


def _add_sources(tables: dict[str, Table], landed: dict[str, Landed]) -> None:
    """Put before each raw table its source, which has its columns but for landing's own."""
    from orchestration.contracts.raw import SOURCES, described_tables

    for file in sorted(SOURCES.glob("*/defs.yaml")):
        system = file.parent.name
        for described in described_tables(file):
            raw = tables.setdefault(
                f"raw.{system}__{described['name']}", Table(f"raw.{system}__{described['name']}")
            )
            for column in described["contract"]:
                raw.columns.setdefault(column, "")
            source = Table(
                f"sources.{system}__{described['name']}",
                {name: "" for name in raw.columns if not name.startswith("_")},
                source=(system, described.get("at_source") or described["name"]),
                landed=landed.get(raw.name),
            )
            tables[source.name] = source
            raw.values = {name: {(source.name, name)} for name in source.columns}
            raw.inputs = {source.name}
            raw.landed = source.landed


def _written(connection: duckdb.DuckDBPyConnection, known: dict[str, Table]) -> dict[str, Written]:
    """When each table was last written."""
    from orchestration.warehouse.frames import WRITES
    from orchestration.warehouse.releases import releases

    all_releases = releases(connection)
    found: dict[str, Written] = {}
    for name, snapshot, at in connection.execute(
        "select name, max(snapshot_id), max(snapshot_time at time zone 'UTC')"
        f" from ({WRITES}) group by 1"
    ).fetchall():
        if name in known:
            release = next((r.name for r in all_releases if r.snapshot_id >= snapshot), None)
            found[name] = Written(snapshot, at, release)
    return found


def _landed(connection: duckdb.DuckDBPyConnection) -> dict[str, Landed]:
    from orchestration.warehouse.frames import table_exists

    if not table_exists(connection, "landing", "ledger"):
        return {}
    rows = connection.execute(
        """
        select
            table_name,
            coalesce(max_by(batch_id, loaded_at) filter (where rows_kept > 0), 'none with rows'),
            max_by(source_position, loaded_at), max(loaded_at)
        from landing.ledger group by 1
        """
    ).fetchall()
    return {table: Landed(batch, position, at) for table, batch, position, at in rows}


def _closure(start: Iterable[Column], step: Callable[[Column], set[Column]]) -> set[Column]:
    reached, waiting = set(start), list(start)
    while waiting:
        new = step(waiting.pop()) - reached
        reached |= new
        waiting += new
    return reached


def _layer(name: str) -> int:
    layer = name.partition(".")[0]
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


def _unknown(name: str, what: str, word: str, known: Iterable[str]) -> MendableError:
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(word, names, n=3, cutoff=0.5) or names[:5]
    return MendableError(
        f"lineage of {name}",
        expected=f"{what}, such as {', '.join(near)}",
        arrived=word,
        mend='watershed lineage <schema.table[.column]>; make sql q="show all tables" lists them',
    )
