"""The alerts: what is wrong by the monitoring tables, told once to the log, the webhook and by e-mail."""

from collections.abc import Iterator

import dagster as dg

from orchestration.alerting.alerts import CONDITIONS, watch_now
from orchestration.defs.vocabulary import code_version, raise_as_failure
from orchestration.settings import load_settings

ALERTS = dg.AssetKey(["monitoring", "alerts"])


@dg.asset(
    key=ALERTS,
    deps=[["monitoring", table] for table in CONDITIONS],
    description="One row per alert: what happened, what it means, what to do, since when, and who was told.",
    group_name="customer_segmentation",
    owners=["team:data-platform"],
    kinds={"duckdb"},
    tags={"layer": "monitoring"},
    code_version=code_version("defs/monitoring/alerts.py", "alerting"),
    check_specs=[
        dg.AssetCheckSpec(
            "sinks_answer", asset=ALERTS, description="Every sink took what it had to be told."
        )
    ],
)
def alerts() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Open, worsen, close, tell; a sink that is down stops nothing."""
    from orchestration.warehouse.connect import connect

    with raise_as_failure():
        settings = load_settings()
        down = watch_now(settings)
        with connect(settings, read_only=True) as connection:
            ((rows, still_open),) = connection.execute(
                "select count(*), count(*) filter (where closed_at is null) from monitoring.alerts"
            ).fetchall()
    yield dg.AssetCheckResult(
        check_name="sinks_answer",
        passed=not down,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"down": down},
    )
    yield dg.MaterializeResult(metadata={"dagster/row_count": rows, "open": still_open})
