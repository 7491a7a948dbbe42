"""What landing writes down about its batches, as the graph shows it: read once all of raw has landed."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from orchestration.build import prepare_manifest
from orchestration.defs.vocabulary import code_version, dbt_manifest
from orchestration.settings import load_settings

LEDGER = dg.AssetKey(["landing", "ledger"])
DAYS = dg.AssetKey(["landing", "days"])

prepare_manifest()

COMMON: dict[str, Any] = {
    "deps": [
        ["raw", source["name"]]
        for source in dbt_manifest()["sources"].values()
        if source["source_name"] == "raw"
    ],
    "group_name": "customer_segmentation",
    "owners": ["team:data-platform"],
    "kinds": {"duckdb"},
    "tags": {"layer": "landing"},
    "code_version": code_version("defs/raw/ledger.py"),
}


@dg.multi_asset(
    name="landing",
    specs=[
        dg.AssetSpec(
            LEDGER,
            description="One line per transaction of landing: rows in, kept, quarantined,"
            " deduplicated, and where the source stood. Landing writes it together with the rows;"
            " this counts its lines.",
            metadata={"dagster/table_name": f"lake.{'.'.join(LEDGER.path)}"},
            **COMMON,
        ),
        dg.AssetSpec(
            DAYS,
            description="On which days, by a raw table's cursor, rows arrived. Landing writes it"
            " together with the rows; this counts its lines.",
            metadata={"dagster/table_name": f"lake.{'.'.join(DAYS.path)}"},
            **COMMON,
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "adds_up",
            asset=LEDGER,
            blocking=True,
            description="In every line, rows in = rows kept + quarantined + deduplicated.",
        ),
        dg.AssetCheckSpec(
            "is_in_the_ledger",
            asset=DAYS,
            description="Every batch in it stands in the ledger.",
        ),
    ],
)
def landing() -> Iterator[dg.MaterializeResult[None]]:
    """Count the lines; they are landing's, nothing is written."""
    from orchestration.warehouse.connect import connect

    with connect(load_settings(), read_only=True) as connection:
        ((lines, wrong),) = connection.execute(
            """
            select
                count(*),
                count(*) filter (
                    where rows_in <> rows_kept + rows_quarantined + rows_deduplicated
                )
            from landing.ledger
            """
        ).fetchall()
        ((days, unknown),) = connection.execute(
            """
            select
                count(*),
                count(*) filter (where batch_id not in (select batch_id from landing.ledger))
            from landing.days
            """
        ).fetchall()
    for key, rows, check, bad in (
        (LEDGER, lines, "adds_up", wrong),
        (DAYS, days, "is_in_the_ledger", unknown),
    ):
        yield dg.MaterializeResult(
            asset_key=key,
            metadata={"dagster/row_count": rows},
            check_results=[
                dg.AssetCheckResult(
                    asset_key=key,
                    check_name=check,
                    passed=bad == 0,
                    metadata={"lines_that_do_not": bad},
                )
            ],
        )
