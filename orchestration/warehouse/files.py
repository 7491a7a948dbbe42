"""The files of the lake as the catalog names them: which are missing or damaged, and which releases that breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse.connect import ALIAS

if TYPE_CHECKING:
    import duckdb

    from orchestration.warehouse.releases import Release


@dataclass(frozen=True)
class LakeFile:
    """A data or delete file.

    Attributes:
        table: `schema.name`.
        path: within the lake's folder.
        size: bytes, as written.
        first, end: the snapshots that read it, from the first on and before the end (None: still).
    """

    table: str
    path: str
    size: int
    first: int
    end: int | None

    def is_in(self, snapshot: int) -> bool:
        """Whether the snapshot is read from it."""
        return self.first <= snapshot and (self.end is None or snapshot < self.end)


def lake_files(connection: duckdb.DuckDBPyConnection) -> list[LakeFile]:
    """All files that some snapshot is read from."""
    catalog = f"__ducklake_metadata_{ALIAS}"
    columns = "table_id, path, file_size_bytes, begin_snapshot, end_snapshot"
    rows = connection.execute(
        f"""
        select distinct on (s.path || t.path || f.path)
            s.schema_name || '.' || t.table_name, s.path || t.path || f.path, f.file_size_bytes,
            f.begin_snapshot, f.end_snapshot
        from (
            select {columns} from {catalog}.ducklake_data_file
            union all
            select {columns} from {catalog}.ducklake_delete_file
        ) as f
        inner join {catalog}.ducklake_table as t using (table_id)
        inner join {catalog}.ducklake_schema as s using (schema_id)
        order by t.begin_snapshot desc, 2
        """
    ).fetchall()
    return [LakeFile(*row) for row in rows]


def damaged(
    connection: duckdb.DuckDBPyConnection, settings: Settings
) -> list[tuple[LakeFile, str]]:
    """Files that are missing, or of another size than was written, each with which of the two it is.

    The lake of a team's store is not looked through: it keeps what it has acknowledged.
    """
    if "://" in settings.lake_path:
        return []
    found = []
    for file in lake_files(connection):
        path = Path(settings.lake_path) / file.path
        if not path.exists():
            found.append((file, "missing"))
        elif path.stat().st_size != file.size:
            found.append((file, f"{path.stat().st_size:,} bytes, not {file.size:,}"))
    return found


def explain_damage(
    damage: Sequence[tuple[LakeFile, str]], known: Sequence[Release]
) -> MendableError:
    """What is damaged, which releases are whole nevertheless, and what to do."""
    broken = {one.name for one in known if any(file.is_in(one.snapshot_id) for file, _ in damage)}
    tables = sorted({file.table for file, _ in damage})
    whole = ", ".join(one.name for one in known if one.name not in broken) or "none"
    shown = "".join(f"\n    {file.path}: {what}" for file, what in damage[:5])
    more = f"\n    and {len(damage) - 5} more" if len(damage) > 5 else ""
    derived = all(not table.startswith(("raw.", "landing.")) for table in tables)
    return MendableError(
        "the lake's folder",
        expected="every file that the catalog names, as it was written",
        arrived=f"{len(damage)} damaged files of {', '.join(tables)}; whole releases: {whole}{shown}{more}",
        mend="make restore from=<backup> into another WATERSHED_DATA_DIR; or copy these files from a backup"
        + ("; what is made of raw: cd dbt_project && dbt build --full-refresh" if derived else ""),
    )
