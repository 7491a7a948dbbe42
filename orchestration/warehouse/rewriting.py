"""Take rows out of every snapshot: rewrite the files that hold them, and swap these in the catalog.

A DuckLake deletes by adding: what is deleted stays readable in older snapshots, which share their files
with newer ones. Here each file that holds a row to remove is written anew without it, under the same
number, so that all snapshots stay and none holds the row. Positions in delete files move with the rows;
row numbers do not, since the new file says them. The catalog changes in one transaction, which makes it
all or nothing whenever the process is killed; the old files are then deleted, or by the next clean-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import Settings
from orchestration.warehouse.bounds import tighten
from orchestration.warehouse.catalog_files import (
    CATALOG,
    FOLDERS,
    ROW_ID,
    ROW_ID_FIELD,
    File,
    Tree,
    encrypted,
    ever_named,
    field_ids,
    full_path,
    key_of_file,
    rows_of,
    trees_of_schema,
    value_in,
)
from orchestration.warehouse.connect import COMPRESSION

if TYPE_CHECKING:
    import duckdb


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


class Removal:
    """Rows to take out of all snapshots: found, written down in `hits`, then removed.

    Args:
        cursor: of `catalog_of`.
        settings: which warehouse.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, settings: Settings) -> None:
        self.cursor, self.settings = cursor, settings
        self.snapshot_id = int(
            value_in(cursor, "select max(snapshot_id) from {c}.ducklake_snapshot") or 0
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
                known = [
                    (n, name) for n, name in ever_named(self.cursor, one.table_id) if name in there
                ]
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
            if any(name == column for _, name in ever_named(self.cursor, file.table_id)):
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

    def _all_files(self) -> list[File]:
        lake = literal(self.settings.lake_path)
        rows = self._rows(
            f"""
            select f.data_file_id, f.table_id, {full_path("f", lake)}, f.record_count, f.row_id_start,
                f.encryption_key, f.mapping_id
            from {{c}}.ducklake_data_file as f {FOLDERS}
            """
        )
        if any(row[-1] is not None for row in rows):
            raise MendableError(
                "the lake's files",
                expected="files that the warehouse itself has written",
                arrived="some were added with ducklake_add_data_files",
                mend="copy these tables into new ones and drop the old, then run the command again",
            )
        return [File(*row[:-1]) for row in rows]

    def _candidates(self, one: Wanted) -> list[File]:
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

    def _names(self, file: File) -> dict[int, str]:
        """Number of a column to its name in the file."""
        return {tree.number: tree.name for tree in self._trees(file) if tree.number is not None}

    def _trees(self, file: File) -> list[Tree]:
        if file.key is None:
            nodes = self._rows(
                "select name, field_id, coalesce(num_children, 0), converted_type"
                f" from parquet_schema({literal(file.path)})"
            )
            return trees_of_schema(iter(nodes))
        # The schema of an encrypted file cannot be asked for; the catalog knows its columns' names.
        there = [name for name, *_ in self._rows(f"describe select * from {file.scan()}")]
        by_name = {name: n for n, name in ever_named(self.cursor, file.table_id)}
        by_name[ROW_ID] = ROW_ID_FIELD
        by_name["_ducklake_internal_snapshot_id"] = ROW_ID_FIELD - 1
        return [
            self._from_catalog(file.table_id, name, by_name[name])
            for name in there
            if name != "file_row_number"
        ]

    def _from_catalog(self, table_id: int, name: str, number: int) -> Tree:
        children = self._rows(
            "select distinct column_name, column_id from {c}.ducklake_column"
            f" where table_id = {table_id} and parent_column = {number} order by 2"
        )
        return Tree(name, number, [self._from_catalog(table_id, *child) for child in children])

    # --- writing ------------------------------------------------------------------------------

    def _write(self, file: File, gone: int) -> tuple[File, str | None, Any]:
        """Write a file without its hits; what it is called now, None if nothing is left."""
        if gone == file.rows:
            return file, None, ()
        trees = self._trees(file)
        row_id = ""
        if all(tree.name != ROW_ID for tree in trees):
            row_id = f", {file.row_id_start} + file_row_number as {ROW_ID}"
            trees.append(Tree(ROW_ID, ROW_ID_FIELD, []))
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
        scan = f"read_parquet({literal(path)}{encrypted(key)})"
        trees = [Tree("file_path", 2147483646, []), Tree("pos", 2147483645, [])]
        if len(self._rows(f"describe select * from {scan}")) == 3:
            trees.append(Tree("_ducklake_internal_snapshot_id", ROW_ID_FIELD - 1, []))
        rows = (
            f"select * replace (moved_to(pos) as pos) from {scan}"
            f" where pos not in (select pos from hits where number = {data_number}) order by pos"
        )
        hits = self.cursor.execute(f"select pos from hits where number = {data_number} order by 1")
        self._sorted = hits.fetchnumpy()["pos"]
        return number, path, new, self._copy(rows, new, trees, key)

    def _copy(self, rows: str, path: str, trees: list[Tree], key: str | None) -> Any:
        with_key = f", encryption_config {{footer_key_value: {key_of_file(key)}}}" if key else ""
        ((_, count, size, footer, columns, _),) = self._rows(
            f"copy ({rows}) to {literal(path)} (format parquet, return_stats,"
            f" compression {COMPRESSION}, parquet_version v2, field_ids {field_ids(trees)}{with_key})"
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
            select f.delete_file_id, f.data_file_id, {full_path("f", lake)}, f.encryption_key, f.format
            from {{c}}.ducklake_delete_file as f {FOLDERS}
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
        now = int(value_in(self.cursor, "select max(snapshot_id) from {c}.ducklake_snapshot") or 0)
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
                if numbers.get(path, ROW_ID_FIELD) < ROW_ID_FIELD - 1:
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
        equals = {one.table_id: one.equals for one in self.wanted.values()}
        tighten(self.cursor, set(tables), equals, self._inlined)
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
        return rows_of(self.cursor, sql)

    def _values(self, sql: str) -> set[str]:
        rows = self._rows(f"select distinct cast(columns(*) as varchar) from ({sql})")
        return {value for (value,) in rows if value is not None}


def _renamed(path: str, ending: str) -> str:
    return f"{path.rsplit('/', 1)[0]}/ducklake-{uuid4()}{ending}"


def _names_of(*paths: str) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path in paths]
