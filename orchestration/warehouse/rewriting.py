"""Take rows out of every snapshot: rewrite the files that hold them, and swap these in the catalog.

A DuckLake deletes by adding: what is deleted stays readable in older snapshots, which share their files
with newer ones. Here each file that holds a row to remove is written anew without it, under the same
number, so that all snapshots stay and none holds the row. Positions in delete files move with the rows;
row numbers do not, since the new file says them. The catalog changes in one transaction, which makes it
all or nothing whenever the process is killed; the old files are then deleted, or by the next clean-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import Settings
from orchestration.warehouse.connect import COMPRESSION

if TYPE_CHECKING:
    import duckdb

CATALOG = "catalog_tables"
_CATALOG_VERSION = "1.0"
_ROW_ID, _ROW_ID_FIELD = "_ducklake_internal_row_id", 2147483540


@dataclass(frozen=True)
class Wanted:
    """Which rows of a table are to go: those for which one of the conditions is true.

    Attributes:
        table_id: the table's number in the catalog; a table that was made anew has another.
        name: `schema.name`, as it was last called.
        conditions: number of a column to SQL with `{}` in the column's place.
        equals: number of a column to the value and type that its condition asks for, so that files
            whose range does not hold it need not be opened.
    """

    table_id: int
    name: str
    conditions: dict[int, str]
    equals: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    number: int
    table_id: int
    path: str
    rows: int
    row_id_start: int | None
    key: str | None

    def scan(self) -> str:
        return f"read_parquet({literal(self.path)}, file_row_number = true{_encryption(self.key)})"


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
        version = _value(cursor, "select value from {c}.ducklake_metadata where key = 'version'")
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


class Removal:
    """Rows to take out of all snapshots: found, written down in `hits`, then removed.

    Args:
        cursor: of `catalog_of`.
        settings: which warehouse.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, settings: Settings) -> None:
        self.cursor, self.settings = cursor, settings
        self.snapshot_id = int(
            _value(cursor, "select max(snapshot_id) from {c}.ducklake_snapshot") or 0
        )
        cursor.execute("create or replace temp table hits (number bigint, pos bigint)")
        cursor.execute(
            "create or replace temp table inlined (stored varchar, table_id bigint, number bigint)"
        )
        self.wanted: dict[int, Wanted] = {}
        self._columns: dict[int, dict[int, str]] = {}
        self._files = {file.number: file for file in self._all_files()}
        self._inlined: dict[int, list[str]] = {}
        for table, name in self._rows(
            "select table_id, table_name from {c}.ducklake_inlined_data_tables"
        ):
            self._inlined.setdefault(table, []).append(name)

    def find(self, wanted: Sequence[Wanted], keys: Mapping[int, Sequence[int]] = {}) -> set[str]:
        """Find the rows, also those that only older snapshots hold.

        Args:
            wanted: per table, which.
            keys: number of a table to columns of it of which the values in the found rows are returned.

        Returns:
            These values, as text.
        """
        values: set[str] = set()
        for one in wanted:
            self.wanted[one.table_id] = one
            for file in self._candidates(one):
                names = self._names(file)
                where = [
                    c.replace("{}", quoted(names[n]))
                    for n, c in one.conditions.items()
                    if n in names
                ]
                if not where:
                    continue
                rows = f"from {file.scan()} where ({' or '.join(where)})"
                found = self._rows(
                    f"insert into hits select {file.number}, file_row_number {rows}"
                    f" and file_row_number not in (select pos from hits where number = {file.number})"
                )
                if found[0][0]:
                    for column in (names[n] for n in keys.get(one.table_id, ()) if n in names):
                        values |= self._values(f"select {quoted(column)} {rows}")
            for stored in self._inlined.get(one.table_id, ()):
                there = {name for name, *_ in self._rows(f"describe {{c}}.{quoted(stored)}")}
                known = [(n, name) for n, name in self._ever_named(one.table_id) if name in there]
                where = [
                    one.conditions[n].replace("{}", quoted(name))
                    for n, name in known
                    if n in one.conditions
                ]
                if where:
                    rows = f"from {{c}}.{quoted(stored)} where ({' or '.join(where)})"
                    self._rows(
                        f"insert into inlined select {literal(stored)}, {one.table_id}, row_id {rows}"
                        f" and row_id not in (select number from inlined where stored = {literal(stored)})"
                    )
                    for column in (m for n, m in known if n in keys.get(one.table_id, ())):
                        values |= self._values(f"select {quoted(column)} {rows}")
        return values

    def expect_one_more(self) -> None:
        """The caller has made one snapshot itself since the rows were found."""
        self.snapshot_id += 1

    def found(self) -> dict[str, tuple[int, int]]:
        """Per table, by name: rows found in all its snapshots, and the files that hold them."""
        counts: dict[str, tuple[int, int]] = {}
        for number, rows in self._rows("select number, count(*) from hits group by 1"):
            name = self.wanted[self._files[number].table_id].name
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + rows, before[1] + 1)
        for table, rows in self._rows("select table_id, count(*) from inlined group by 1"):
            name = self.wanted[table].name
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + rows, before[1])
        return counts

    def told(self, column: str) -> set[str]:
        """What the found rows say in a column of that name, in whatever table, as text."""
        values: set[str] = set()
        for (number,) in self._rows("select distinct number from hits"):
            file = self._files[number]
            if any(name == column for _, name in self._ever_named(file.table_id)):
                values |= self._values(
                    f"select {quoted(column)} from {file.scan()} where file_row_number in"
                    f" (select pos from hits where number = {number})"
                )
        for (stored,) in self._rows("select distinct stored from inlined"):
            if any(name == column for name, *_ in self._rows(f"describe {{c}}.{quoted(stored)}")):
                values |= self._values(
                    f"select {quoted(column)} from {{c}}.{quoted(stored)} where row_id in"
                    f" (select number from inlined where stored = {literal(stored)})"
                )
        return values

    def remove(self, message: str) -> None:
        """Write the files anew and swap them in, in one transaction of the catalog.

        The old ones are on the catalog's list of files to delete afterwards.

        Raises:
            WarehouseBusyError: somebody has written to the warehouse since the rows were found.
        """
        hit = self._rows("select number, count(*) from hits group by 1 order by 1")
        self.cursor.create_function(  # type: ignore[call-overload]
            "moved_to", self._moved_to, ["BIGINT"], "BIGINT", type="arrow"
        )
        try:
            data = [self._write(self._files[number], rows) for number, rows in hit]
            deletes = [self._write_deletes(*row) for row in self._delete_files(hit)]
            self.cursor.execute("begin transaction")
            self._swap(data, deletes, message)
            self.cursor.execute("commit")
        finally:
            self.cursor.remove_function("moved_to")

    # --- finding ------------------------------------------------------------------------------

    def _all_files(self) -> list[_File]:
        lake = literal(self.settings.lake_path)
        rows = self._rows(
            f"""
            select f.data_file_id, f.table_id, {_full("f", lake)}, f.record_count, f.row_id_start,
                f.encryption_key, f.mapping_id
            from {{c}}.ducklake_data_file as f {_FOLDERS}
            """
        )
        if any(row[-1] is not None for row in rows):
            raise MendableError(
                "the lake's files",
                expected="files that the warehouse itself has written",
                arrived="some were added with ducklake_add_data_files",
                mend="copy these tables into new ones and drop the old, then run the command again",
            )
        return [_File(*row[:-1]) for row in rows]

    def _candidates(self, one: Wanted) -> list[_File]:
        """The files of a table that may hold such a row, by the ranges of its columns."""
        known = [file for file in self._files.values() if file.table_id == one.table_id]
        if not known or set(one.equals) != set(one.conditions):
            return known
        inside = " or ".join(
            f"(column_id = {n} and coalesce(try_cast(min_value as {kind}) <= {value}"
            f" and try_cast(max_value as {kind}) >= {value}, null_count is null or value_count > 0))"
            for n, (value, kind) in one.equals.items()
        )
        rows = self._rows(
            "select data_file_id, bool_or(" + inside + ") from {c}.ducklake_file_column_stats"
            f" where table_id = {one.table_id} group by 1"
        )
        outside = {number for number, may in rows if may is False}
        return [file for file in known if file.number not in outside]

    def _names(self, file: _File) -> dict[int, str]:
        """Number of a column to its name in the file."""
        return {tree.number: tree.name for tree in self._trees(file) if tree.number is not None}

    def _trees(self, file: _File) -> list[_Tree]:
        if file.key is None:
            nodes = self._rows(
                "select name, field_id, coalesce(num_children, 0), converted_type"
                f" from parquet_schema({literal(file.path)})"
            )
            return _from_parquet(iter(nodes))
        # The schema of an encrypted file cannot be asked for; the catalog knows its columns' names.
        there = [name for name, *_ in self._rows(f"describe select * from {file.scan()}")]
        by_name = {name: n for n, name in self._ever_named(file.table_id)}
        by_name[_ROW_ID] = _ROW_ID_FIELD
        by_name["_ducklake_internal_snapshot_id"] = _ROW_ID_FIELD - 1
        return [
            self._from_catalog(file.table_id, name, by_name[name])
            for name in there
            if name != "file_row_number"
        ]

    def _from_catalog(self, table_id: int, name: str, number: int) -> _Tree:
        children = self._rows(
            "select distinct column_name, column_id from {c}.ducklake_column"
            f" where table_id = {table_id} and parent_column = {number} order by 2"
        )
        return _Tree(name, number, [self._from_catalog(table_id, *child) for child in children])

    def _ever_named(self, table_id: int) -> list[tuple[int, str]]:
        """Numbers of a table's columns and every name that they have had, the newest last."""
        return self._rows(
            "select column_id, column_name from {c}.ducklake_column"
            f" where table_id = {table_id} and parent_column is null order by begin_snapshot"
        )

    # --- writing ------------------------------------------------------------------------------

    def _write(self, file: _File, gone: int) -> tuple[_File, str | None, Any]:
        """Write a file without its hits; what it is called now, None if nothing is left."""
        if gone == file.rows:
            return file, None, ()
        trees = self._trees(file)
        row_id = ""
        if all(tree.name != _ROW_ID for tree in trees):
            row_id = f", {file.row_id_start} + file_row_number as {_ROW_ID}"
            trees.append(_Tree(_ROW_ID, _ROW_ID_FIELD, []))
        new = _renamed(file.path, ".parquet")
        rows = (
            f"select * exclude (file_row_number){row_id} from {file.scan()} where file_row_number"
            f" not in (select pos from hits where number = {file.number}) order by file_row_number"
        )
        return file, new, (self._copy(rows, new, trees, file.key), trees)

    def _write_deletes(
        self, number: int, data_number: int, path: str, key: str | None, is_needed: bool
    ) -> tuple[int, str, str, Any]:
        """Write a delete file for the positions as they are afterwards; nothing if its file goes."""
        if not is_needed:
            return number, path, "", (0, 0, 0, {})
        new = _renamed(path, "-delete.parquet")
        scan = f"read_parquet({literal(path)}{_encryption(key)})"
        trees = [_Tree("file_path", 2147483646, []), _Tree("pos", 2147483645, [])]
        if len(self._rows(f"describe select * from {scan}")) == 3:
            trees.append(_Tree("_ducklake_internal_snapshot_id", _ROW_ID_FIELD - 1, []))
        rows = (
            f"select * replace (moved_to(pos) as pos) from {scan}"
            f" where pos not in (select pos from hits where number = {data_number}) order by pos"
        )
        hits = self.cursor.execute(f"select pos from hits where number = {data_number} order by 1")
        self._sorted = hits.fetchnumpy()["pos"]
        return number, path, new, self._copy(rows, new, trees, key)

    def _copy(self, rows: str, path: str, trees: list[_Tree], key: str | None) -> Any:
        encrypted = f", encryption_config {{footer_key_value: {_key(key)}}}" if key else ""
        ((_, count, size, footer, columns, _),) = self._rows(
            f"copy ({rows}) to {literal(path)} (format parquet, return_stats,"
            f" compression {COMPRESSION}, parquet_version v2, field_ids {_field_ids(trees)}{encrypted})"
        )
        return count, size, footer, columns

    def _moved_to(self, positions: Any) -> Any:
        """Where rows stand once the hits before them are gone."""
        import numpy as np
        import pyarrow as pa

        places = positions.to_numpy()
        return pa.array(places - np.searchsorted(self._sorted, places))

    def _delete_files(self, hit: list[tuple[int, int]]) -> list[Any]:
        """Number, data file's number, path and key of each delete file, and whether any row is left."""
        lake = literal(self.settings.lake_path)
        rows = self._rows(
            f"""
            select f.delete_file_id, f.data_file_id, {_full("f", lake)}, f.encryption_key, f.format
            from {{c}}.ducklake_delete_file as f {_FOLDERS}
            where list_contains({[number for number, _ in hit]}::bigint[], f.data_file_id) order by 1
            """
        )
        if any(row[-1] != "parquet" for row in rows):
            raise MendableError(
                "the lake's delete files",
                expected="Parquet files",
                arrived="deletion vectors",
                mend="call ducklake_rewrite_data_files('lake') first; nothing was changed",
            )
        whole = {number for number, gone in hit if self._files[number].rows == gone}
        return [(*row[:-1], row[1] not in whole) for row in rows]

    # --- swapping -----------------------------------------------------------------------------

    def _swap(self, data: list[Any], deletes: list[Any], message: str) -> None:
        do = self.cursor.execute
        now = int(_value(self.cursor, "select max(snapshot_id) from {c}.ducklake_snapshot") or 0)
        if now != self.snapshot_id:
            raise WarehouseBusyError(
                "the rows to remove",
                expected="to be the only writer while they are removed",
                arrived="somebody else has written meanwhile; nothing was removed",
                mend="run the command again",
            )
        for old in [file.path for file, *_ in data] + [path for _, path, *_ in deletes]:
            do(
                f"insert into {CATALOG}.ducklake_files_scheduled_for_deletion"
                " select 0, ?, false, now()::varchar", [old],
            )  # fmt: skip
        for file, new, told in data:
            where = f"where data_file_id = {file.number}"
            do(f"delete from {CATALOG}.ducklake_file_variant_stats {where}")
            do(f"delete from {CATALOG}.ducklake_file_column_stats {where}")
            if new is None:
                for part in ("data_file", "delete_file", "file_partition_value"):
                    do(f"delete from {CATALOG}.ducklake_{part} {where}")
                continue
            (count, size, footer, columns), trees = told
            do(
                f"update {CATALOG}.ducklake_data_file set path = replace(path, ?, ?),"
                f" record_count = ?, file_size_bytes = ?, footer_size = ? {where}",
                [*_names_of(file.path, new), count, size, footer],
            )
            numbers = dict(path for tree in trees for path in tree.paths())
            for path, stats in columns.items():
                if numbers.get(path, _ROW_ID_FIELD) < _ROW_ID_FIELD - 1:
                    nan = stats.get("has_nan")
                    do(
                        f"insert into {CATALOG}.ducklake_file_column_stats"
                        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, null)",
                        [
                            file.number, file.table_id, numbers[path], stats["column_size_bytes"],
                            stats["num_values"], stats.get("null_count"), stats.get("min"),
                            stats.get("max"), None if nan is None else nan == "true",
                        ],
                    )  # fmt: skip
        for number, path, new, (count, size, footer, _) in deletes:
            where = f"where delete_file_id = {number}"
            if count == 0:
                do(f"delete from {CATALOG}.ducklake_delete_file {where}")
                continue
            do(
                f"update {CATALOG}.ducklake_delete_file set path = replace(path, ?, ?),"
                f" delete_count = ?, file_size_bytes = ?, footer_size = ? {where}",
                [*_names_of(path, new), count, size, footer],
            )
        tables = self._swap_inlined({file.number: file.table_id for file, *_ in data})
        self._tighten(set(tables))
        for table, removed in tables.items():
            do(
                f"update {CATALOG}.ducklake_table_stats set record_count ="
                f" greatest(record_count - {removed}, 0) where table_id = {table}"
            )
        # A commit of DuckLake's own kind: a writer that was at these tables meanwhile fails.
        changes = ",".join(f"merge_adjacent:{table}" for table in sorted(tables))
        do(
            f"insert into {CATALOG}.ducklake_snapshot select snapshot_id + 1, now()::varchar,"
            f" schema_version, next_catalog_id, next_file_id + 1 from {CATALOG}.ducklake_snapshot"
            f" where snapshot_id = {now}"
        )
        do(
            f"insert into {CATALOG}.ducklake_snapshot_changes values (?, ?, null, ?, null)",
            [now + 1, changes, message],
        )

    def _tighten(self, tables: set[int]) -> None:
        """Make the bounds of whole tables those of what is left; also where only a bound names the value."""
        for one in self.wanted.values():
            for number, (value, kind) in one.equals.items():
                if self._rows(
                    f"select 1 from {{c}}.ducklake_table_column_stats where table_id = {one.table_id}"
                    f" and column_id = {number} and (try_cast(min_value as {kind}) = {value}"
                    f" or try_cast(max_value as {kind}) = {value})"
                ):
                    tables.add(one.table_id)
        ours = f"list_contains({sorted(tables)}::bigint[], table_id)"
        self.cursor.execute(
            "create or replace temp table bounds"
            " (table_id bigint, column_id bigint, low varchar, high varchar, is_told boolean)"
        )
        self.cursor.execute(
            f"""
            create or replace temp table kinds as
            select table_id, column_id, arg_max(column_type, begin_snapshot) as kind
            from {CATALOG}.ducklake_column where {ours} group by 1, 2
            """
        )
        # Two values tell of nobody, and what is nested has bounds of its own.
        for kind, of_kind in self._rows(
            "select kind, list([table_id, column_id]) from kinds"
            " where kind not in ('boolean', 'list', 'struct', 'map') group by 1"
        ):
            to = sql_type(kind)
            known = f"(table_id, column_id) in (select (table_id, column_id) from kinds where kind = {literal(kind)})"
            parts = [
                f"""
                select table_id, column_id, try_cast(min_value as {to}) as low,
                    try_cast(max_value as {to}) as high,
                    min_value is not null or coalesce(null_count >= value_count, false) as is_told
                from {{c}}.ducklake_file_column_stats where {known}
                """,
                # also where no row is left
                "select table_id, column_id, null, null, null from {c}.ducklake_table_column_stats"
                f" where {known}",
            ]
            for table in tables & self._inlined.keys():
                numbers = {name: n for n, name in self._ever_named(table)}
                ours_of_kind = {n for t, n in of_kind if t == table}
                for stored in self._inlined[table]:
                    named = {
                        numbers[name]: name
                        for name, *_ in self._rows(f"describe {{c}}.{quoted(stored)}")
                        if name in numbers and kind != "blob"
                    }
                    for number in ours_of_kind:
                        told = "null, null, false"  # of what is nested, or not kept as text
                        if number in named:
                            value = f"try_cast({quoted(named[number])} as {to})"
                            told = f"min({value}), max({value}), true"
                        parts.append(
                            f"select {table}, {number}, {told}"
                            f" from {{c}}.{quoted(stored)} having count(*) > 0"
                        )
            self._rows(
                "insert into bounds select table_id, column_id, min(low)::varchar,"
                f" max(high)::varchar, bool_and(is_told) from ({' union all '.join(parts)})"
                " group by 1, 2"
            )
        # Without a row, or where a file does not tell, there are no bounds.
        for table, column, low, high in self._rows(
            """
            from (
                select table_id, column_id, case when is_told then low end as low,
                    case when is_told then high end as high
                from bounds
            )
            join {c}.ducklake_table_column_stats as s using (table_id, column_id)
            select table_id, column_id, low, high
            where low is distinct from s.min_value or high is distinct from s.max_value
            """
        ):
            self.cursor.execute(
                f"update {CATALOG}.ducklake_table_column_stats set min_value = ?, max_value = ?"
                f" where table_id = {table} and column_id = {column}",
                [low, high],
            )

    def _swap_inlined(self, files: Mapping[int, int]) -> dict[int, int]:
        """Remove inlined rows, and move inlined deletions; per table how many rows go in all."""
        do = self.cursor.execute
        tables: dict[int, int] = {}
        for number, count in self._rows("select number, count(*) from hits group by 1"):
            tables[files[number]] = tables.get(files[number], 0) + count
        for stored, table, count in self._rows(
            "select stored, table_id, count(*) from inlined group by 1, 2"
        ):
            tables[table] = tables.get(table, 0) + count
            do(
                f"delete from {CATALOG}.{quoted(stored)} where row_id in"
                f" (select number from inlined where stored = {literal(stored)})"
            )
        there = {
            name
            for (name,) in self._rows(
                "select table_name from information_schema.tables"
                f" where table_catalog = '{CATALOG}' and table_name like 'ducklake_inlined_delete_%'"
            )
        }
        for table in {*files.values()}:
            name = f"ducklake_inlined_delete_{table}"
            if name not in there:
                continue
            ours = "file_id in (select number from hits)"
            do(
                f"""
                create or replace temp table still_deleted as
                select file_id, row_id - (
                    select count(*) from hits where number = file_id and pos < row_id
                ) as row_id, begin_snapshot
                from {CATALOG}.{name} as d
                where {ours} and not exists (from hits where number = file_id and pos = d.row_id)
                """
            )
            do(f"delete from {CATALOG}.{name} where {ours}")
            do(f"insert into {CATALOG}.{name} from still_deleted")
        return tables

    def _rows(self, sql: str) -> list[Any]:
        return self.cursor.execute(sql.replace("{c}", CATALOG)).fetchall()

    def _values(self, sql: str) -> set[str]:
        rows = self._rows(f"select distinct cast(columns(*) as varchar) from ({sql})")
        return {value for (value,) in rows if value is not None}


@dataclass(frozen=True)
class _Tree:
    """A column of a file, by its number in the catalog, and what is nested in it."""

    name: str
    number: int | None
    children: list[_Tree]

    def paths(self, before: str = "") -> Iterator[tuple[str, int]]:
        """Its leaves as statistics call them, and their numbers."""
        path = before + quoted(self.name)
        if not self.children and self.number is not None:
            yield path, self.number
        for child in self.children:
            yield from child.paths(f"{path}.")


_FOLDERS = f"""
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


def _full(file: str, lake: str) -> str:
    """SQL for a file's whole path."""
    schema = f"case when s.path_is_relative::boolean then {lake} || s.path else s.path end"
    table = f"case when t.path_is_relative::boolean then ({schema}) || t.path else t.path end"
    return (
        f"case when {file}.path_is_relative::boolean then ({table}) || {file}.path"
        f" else {file}.path end"
    )


def _from_parquet(nodes: Iterator[Any]) -> list[_Tree]:
    """The columns of a Parquet schema, which lists them depth first."""

    def read(count: int) -> list[_Tree]:
        found = []
        for _ in range(count):
            name, number, children, kind = next(nodes)
            inner = read(children)
            if kind in ("LIST", "MAP"):  # between it and what it holds is a group
                inner = inner[0].children
            found.append(_Tree(name, number, inner))
        return found

    (root,) = read(1)
    return root.children


def _field_ids(trees: Sequence[_Tree]) -> str:
    def one(tree: _Tree) -> str:
        if not tree.children:
            return f"{quoted(tree.name)}: {tree.number}"
        inner = ", ".join([f"__duckdb_field_id: {tree.number}", *map(one, tree.children)])
        return f"{quoted(tree.name)}: {{{inner}}}"

    return "{" + ", ".join(one(tree) for tree in trees if tree.number is not None) + "}"


def _renamed(path: str, ending: str) -> str:
    return f"{path.rsplit('/', 1)[0]}/ducklake-{uuid4()}{ending}"


def _names_of(*paths: str) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path in paths]


def _encryption(key: str | None) -> str:
    return f", encryption_config = {{footer_key_value: {_key(key)}}}" if key else ""


def _key(key: str | None) -> str:
    return f"from_base64({literal(key or '')})"


def _value(cursor: duckdb.DuckDBPyConnection, sql: str) -> Any:
    row = cursor.execute(sql.replace("{c}", CATALOG)).fetchall()
    return row[0][0] if row else None
