"""Compress the lake's delete files, which say which rows of a data file are deleted since which snapshot.

DuckLake compresses data files as its options say, and delete files not: eight bytes a row, badly packed. A table
of which each release changes a little has deleted as many rows as it holds after a hundred of them. What is
written here says the same, in the same order, in a hundredth of the room where the rows lie evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from orchestration.duckdb_session import literal
from orchestration.settings import Settings
from orchestration.warehouse.catalog_files import CATALOG, catalog_of
from orchestration.warehouse.connect import COMPRESSION, transaction

if TYPE_CHECKING:
    import duckdb

_ENDING = "-compressed-delete.parquet"
_WORTH_IT = 1000
"""Positions; below that the file is mostly its footer."""
_FIELDS = {
    "file_path": 2147483646,
    "pos": 2147483645,
    "_ducklake_internal_snapshot_id": 2147483539,  # only where the file serves several snapshots
}


def compress_deletions(connection: duckdb.DuckDBPyConnection, settings: Settings) -> int:
    """Write the delete files that DuckLake wrote anew, compressed; the old ones are then to be cleaned up.

    Each keeps its number and says the same of every snapshot, so that it is no change of a table. All are swapped in
    the catalog in one transaction, so that a kill leaves either; a file that is not in the catalog is an orphan.

    Args:
        connection: a writing connection; the caller holds the writer's lock.
        settings: which warehouse.

    Returns:
        How many.
    """
    with catalog_of(connection, settings) as cursor:
        found = cursor.execute(
            f"""
            select f.delete_file_id, {literal(settings.lake_path)} || s.path || t.path || f.path, f.path,
                f.encryption_key
            from {CATALOG}.ducklake_delete_file as f
            join (select distinct on (table_id) * from {CATALOG}.ducklake_table) as t using (table_id)
            join (select distinct on (schema_id) * from {CATALOG}.ducklake_schema) as s using (schema_id)
            where f.format = 'parquet' and f.delete_count >= {_WORTH_IT} and not ends_with(f.path, '{_ENDING}')
            order by 1
            """
        ).fetchall()
        swaps = []
        for number, path, name, key in found:
            key_value = f"{{footer_key_value: from_base64({literal(key)})}}" if key else None
            scan = f"read_parquet({literal(path)}{f', encryption_config = {key_value}' if key else ''})"
            encrypted = f", encryption_config {key_value}" if key else ""
            columns = [one for one, *_ in cursor.execute(f"describe from {scan}").fetchall()]
            fields = ", ".join(f"{one}: {_FIELDS[one]}" for one in columns)
            new = f"ducklake-{uuid4()}{_ENDING}"
            ((_, _, size, footer, *_),) = cursor.execute(
                f"copy (from {scan} order by pos) to {literal(path.removesuffix(name) + new)} (format parquet,"
                f" return_stats, field_ids {{{fields}}}, compression {COMPRESSION}, parquet_version v2{encrypted})"
            ).fetchall()
            swaps.append((number, path, new, size, footer))
        with transaction(cursor):
            for number, path, new, size, footer in swaps:
                cursor.execute(
                    f"insert into {CATALOG}.ducklake_files_scheduled_for_deletion"
                    f" select 0, {literal(path)}, false, now()::varchar"
                )
                cursor.execute(
                    f"update {CATALOG}.ducklake_delete_file set path = '{new}',"
                    f" file_size_bytes = {size}, footer_size = {footer} where delete_file_id = {number}"
                )
    return len(swaps)
