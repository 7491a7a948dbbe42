"""The ledger that landing keeps of every batch, as the graph shows it: read once all of raw has landed."""

import dagster as dg

from orchestration.build import prepare_manifest
from orchestration.defs.vocabulary import code_version, dbt_manifest
from orchestration.settings import load_settings

LEDGER = dg.AssetKey(["landing", "ledger"])

prepare_manifest()


@dg.asset(
    key=LEDGER,
    deps=[
        ["raw", source["name"]]
        for source in dbt_manifest()["sources"].values()
        if source["source_name"] == "raw"
    ],
    description="One line per landed batch: rows in, kept, quarantined, deduplicated, and where the"
    " source stood. Landing writes it in the same transaction as the rows; this counts its lines.",
    group_name="customer_segmentation",
    owners=["team:data-platform"],
    kinds={"duckdb"},
    tags={"layer": "landing"},
    metadata={"dagster/table_name": f"lake.{'.'.join(LEDGER.path)}"},
    code_version=code_version("defs/raw/ledger.py"),
    check_specs=[
        dg.AssetCheckSpec(
            "adds_up",
            asset=LEDGER,
            blocking=True,
            description="In every line, rows in = rows kept + quarantined + deduplicated.",
        )
    ],
)
def ledger() -> dg.MaterializeResult:
    """Count the ledger's lines; they are landing's, nothing is written."""
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
    return dg.MaterializeResult(
        metadata={"dagster/row_count": lines},
        check_results=[
            dg.AssetCheckResult(
                check_name="adds_up", passed=wrong == 0, metadata={"lines_that_do_not": wrong}
            )
        ],
    )
