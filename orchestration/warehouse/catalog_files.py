"""The catalog's own tables, and the Parquet files that they name: where these are, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.settings import Settings

if TYPE_CHECKING:
    import duckdb

CATALOG = "catalog_tables"
_CATALOG_VERSION = "1.0"
ROW_ID, ROW_ID_FIELD = "_ducklake_internal_row_id", 2147483540


@dataclass(frozen=True)
class File:
    """A data file of the lake."""

    number: int
    table_id: int
    path: str
    rows: int
    row_id_start: int | None
    key: str | None

    def scan(self) -> str:
        """SQL that reads it, with the number of each row."""
        return f"read_parquet({literal(self.path)}, file_row_number = true{encrypted(self.key)})"


@contextmanager
def catalog_of(
    connection: duckdb.DuckDBPyConnection, settings: Settings
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection beside `connection` in which the catalog's own tables are the schema `catalog_tables`.

    Raises:
        MendableError: the catalog is of a version whose tables are not known here.
    """
    import duckdb

    kind, _, where = settings.catalog.partition(":")
    cursor = connection.cursor()
    busy = ", busy_timeout 10000" if kind == "sqlite" else ""
    cursor.execute(f"attach {literal(where)} as {CATALOG} (type {kind}{busy})")
    try:
        cursor.execute("set TimeZone = 'UTC'")
        version = value_in(cursor, "select value from {c}.ducklake_metadata where key = 'version'")
        if version != _CATALOG_VERSION:
            raise MendableError(
                "the catalog's tables",
                expected=f"those of DuckLake's version {_CATALOG_VERSION}, which can be rewritten",
                arrived=f"version {version}",
                mend="run the command with the Watershed that fits this DuckDB; nothing was changed",
            )
        yield cursor
    finally:
        with suppress(duckdb.Error):  # no transaction is open where all went well
            cursor.execute("rollback")
        cursor.execute(f"detach {CATALOG}")
        cursor.close()


@dataclass(frozen=True)
class Tree:
    """A column of a file, by its number in the catalog, and what is nested in it."""

    name: str
    number: int | None
    children: list[Tree]

    def paths(self, before: str = "") -> Iterator[tuple[str, int]]:
        """Its leaves as statistics call them, and their numbers."""
        path = before + quoted(self.name)
        if not self.children and self.number is not None:
            yield path, self.number
        for child in self.children:
            yield from child.paths(f"{path}.")


FOLDERS = f"""
    join (select distinct on (table_id) * from {CATALOG}.ducklake_table) as t using (table_id)
    join (select distinct on (schema_id) * from {CATALOG}.ducklake_schema) as s
        on s.schema_id = t.schema_id
"""


_TYPES = {
    "int8": "tinyint", "int16": "smallint", "int32": "integer", "int64": "bigint",
    "uint8": "utinyint", "uint16": "usmallint", "uint32": "uinteger", "uint64": "ubigint",
    "int128": "hugeint", "uint128": "uhugeint", "float32": "float", "float64": "double",
}  # fmt: skip


def sql_type(kind: str) -> str:
    """A type of the catalog as SQL says it."""
    return _TYPES.get(kind, kind)


def full_path(file: str, lake: str) -> str:
    """SQL for a file's whole path."""
    schema = f"case when s.path_is_relative::boolean then {lake} || s.path else s.path end"
    table = f"case when t.path_is_relative::boolean then ({schema}) || t.path else t.path end"
    return (
        f"case when {file}.path_is_relative::boolean then ({table}) || {file}.path"
        f" else {file}.path end"
    )


def trees_of_schema(nodes: Iterator[Any]) -> list[Tree]:
    """The columns of a Parquet schema, which lists them depth first."""

    def read(count: int) -> list[Tree]:
        found = []
        for _ in range(count):
            name, number, children, kind = next(nodes)
            inner = read(children)
            if kind in ("LIST", "MAP"):  # between it and what it holds is a group
                inner = inner[0].children
            found.append(Tree(name, number, inner))
        return found

    (root,) = read(1)
    return root.children


def field_ids(trees: Sequence[Tree]) -> str:
    """SQL that gives the columns of a new file their numbers."""

    def one(tree: Tree) -> str:
        if not tree.children:
            return f"{quoted(tree.name)}: {tree.number}"
        inner = ", ".join([f"__duckdb_field_id: {tree.number}", *map(one, tree.children)])
        return f"{quoted(tree.name)}: {{{inner}}}"

    return "{" + ", ".join(one(tree) for tree in trees if tree.number is not None) + "}"


def encrypted(key: str | None) -> str:
    """SQL for reading a file that may be encrypted."""
    return f", encryption_config = {{footer_key_value: {key_of_file(key)}}}" if key else ""


def key_of_file(key: str | None) -> str:
    """SQL for the key as the catalog has it."""
    return f"from_base64({literal(key or '')})"


def value_in(cursor: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The one value that a statement answers, None if there is none."""
    rows = rows_of(cursor, sql)
    return rows[0][0] if rows else None


def rows_of(cursor: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    """What a statement answers, in which `{c}` stands for the schema of the catalog's own tables."""
    return cursor.execute(sql.replace("{c}", CATALOG)).fetchall()


def ever_named(cursor: duckdb.DuckDBPyConnection, table_id: int) -> list[tuple[int, str]]:
    """Numbers of a table's columns and every name that they have had, the newest last."""
    return rows_of(
        cursor,
        "select column_id, column_name from {c}.ducklake_column"
        f" where table_id = {table_id} and parent_column is null order by begin_snapshot",
    )
