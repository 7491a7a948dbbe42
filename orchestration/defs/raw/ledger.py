"""The ledger that landing keeps of every batch, as the graph shows it."""

import dagster as dg

ledger = dg.AssetSpec(
    ["landing", "ledger"],
    description="One line per landed batch: rows in, kept, quarantined, deduplicated, and where the"
    " source stood. Landing writes it in the same transaction as the rows.",
    group_name="customer_segmentation",
    owners=["team:data-platform"],
    kinds={"duckdb"},
    tags={"layer": "landing"},
)
