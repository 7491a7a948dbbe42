"""The lake's upkeep: small files merged, what no release needs removed; once a week by itself."""

from collections.abc import Iterator

import dagster as dg

from orchestration.defs.vocabulary import code_version, raise_as_failure
from orchestration.settings import load_settings

UPKEEP = dg.AssetKey(["monitoring", "lake_upkeep"])


@dg.asset(
    key=UPKEEP,
    description="Expires snapshots older than a week that no release needs, merges small files,"
    " compresses lists of deleted rows, and removes files that nothing refers to. A released snapshot is"
    " never touched. It holds no data.",
    group_name="customer_segmentation",
    owners=["team:data-platform"],
    kinds={"duckdb"},
    tags={"layer": "monitoring"},
    code_version=code_version(
        "defs/monitoring/lake.py", "warehouse/maintenance.py", "warehouse/deletions.py"
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "keeps_every_release",
            asset=UPKEEP,
            description="The snapshot of every release can still be read.",
        )
    ],
)
def lake_upkeep() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Maintain, and tell how large the lake is."""
    from orchestration.warehouse.connect import ALIAS, connect
    from orchestration.warehouse.maintenance import maintain
    from orchestration.warehouse.releases import releases

    settings = load_settings()
    with raise_as_failure(), connect(settings) as connection:
        done = maintain(connection, settings)
        snapshots = {
            n for (n,) in connection.execute("select snapshot_id from snapshots()").fetchall()
        }
        lost = [one.name for one in releases(connection) if one.snapshot_id not in snapshots]
        ((files, size),) = connection.execute(
            "select sum(file_count), sum(file_size_bytes) / 1e6"
            f" from ducklake_table_info('{ALIAS}')"
        ).fetchall()
    yield dg.AssetCheckResult(
        check_name="keeps_every_release", passed=not lost, metadata={"lost": lost}
    )
    yield dg.MaterializeResult(
        metadata={
            "snapshots_expired": done.snapshots_expired,
            "files_merged": done.files_merged,
            "deletions_compressed": done.deletions_compressed,
            "files_removed": done.files_removed,
            "snapshots": len(snapshots),
            "files_in_use": int(files or 0),
            "megabytes_in_use": float(size or 0),
        }
    )
