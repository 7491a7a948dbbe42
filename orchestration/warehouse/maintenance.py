"""Keep the lake small: expire snapshots that no release needs, merge and compress files, remove what is left over.

A released snapshot stays, and so do those that its training sets are rebuilt from: the ones in which
staging was written, and what staging read then. Nothing after the last release is touched, since the next
one is told by what has changed since. Files that were in use within the days to keep stay as well,
because somebody may be reading them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestration.settings import Settings
from orchestration.warehouse.connect import ALIAS, COMPRESSION, set_option, writing
from orchestration.warehouse.deletions import compress_deletions
from orchestration.warehouse.frames import WRITES, table_exists

if TYPE_CHECKING:
    import duckdb

KEEP_DAYS = 7.0
_NEEDED = f"""
    with released as (select distinct snapshot_id from releases.history),
    staged as (select name, snapshot_id from ({WRITES}) where name like 'staging.%'),
    read_by_release as (
        select max(s.snapshot_id) as snapshot_id
        from released as r
        inner join staged as s on s.snapshot_id <= r.snapshot_id
        group by r.snapshot_id, s.name
    )
    from released
    union select snapshot_id from read_by_release
    union select snapshot_id - 1 from read_by_release
"""


@dataclass(frozen=True)
class Maintained:
    """What was done.

    Attributes:
        snapshots_expired: how many can no longer be read.
        files_merged: small files that became fewer, larger ones.
        deletions_compressed: delete files that were written anew, smaller.
        files_removed: files that nothing referred to.
    """

    snapshots_expired: int
    files_merged: int
    deletions_compressed: int
    files_removed: int


def maintain(
    connection: duckdb.DuckDBPyConnection, settings: Settings, *, keep_days: float = KEEP_DAYS
) -> Maintained:
    """Expire, merge, compress and clean up; readers go on meanwhile, writers wait.

    Args:
        connection: a writing connection.
        settings: which warehouse.
        keep_days: nothing that was in use within so many days is expired or removed.
    """
    before = f"now() - to_microseconds({int(keep_days * 86_400_000_000)})"
    with writing(settings, "maintaining the lake"):
        expired = _expendable(connection, before)
        if expired:
            connection.execute(
                f"call ducklake_expire_snapshots('{ALIAS}', versions => {expired})"
            ).fetchall()
        # What updates have scattered is merged with the encodings of Parquet's version 2, which make up for it.
        set_option(connection, "parquet_compression", COMPRESSION)  # an older warehouse has none
        set_option(connection, "parquet_version", "2")
        try:
            merged = connection.execute(f"call ducklake_merge_adjacent_files('{ALIAS}')").fetchall()
        finally:
            set_option(connection, "parquet_version", "1")
        compressed = compress_deletions(connection, settings)
        removed = 0
        for function in ("ducklake_cleanup_old_files", "ducklake_delete_orphaned_files"):
            removed += len(
                connection.execute(f"call {function}('{ALIAS}', older_than => {before})").fetchall()
            )
    return Maintained(len(expired), sum(row[2] for row in merged), compressed, removed)


def _expendable(connection: duckdb.DuckDBPyConnection, before: str) -> list[int]:
    """Snapshots that are old enough, before the last release, and needed by none."""
    if not table_exists(connection, "releases", "history"):
        return []
    rows = connection.execute(
        f"""
        select snapshot_id from snapshots()
        where
            snapshot_time < {before}
            and snapshot_id < (select max(snapshot_id) from releases.history)
            and snapshot_id not in ({_NEEDED})
        order by 1
        """
    ).fetchall()
    return [snapshot for (snapshot,) in rows]
