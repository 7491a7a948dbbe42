"""How the machines are, to look at: the fleet, its worst machine, and how soon the stream said so."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.defs.vocabulary import code_version, picture, raise_as_failure
from orchestration.settings import load_settings

if TYPE_CHECKING:
    import duckdb
    import polars as pl

REPORT = dg.AssetKey(["monitoring", "machine_fleet_report"])
HEALTH, WARNINGS = "predictions/machine_health", "predictions/machine_warnings"
FEATURES, FAILURES = "features/feat_sensor__windows", "staging/stg_plant_db__failures"
METRICS = "monitoring/mon_predictive_maintenance__metrics"


@dg.asset(
    key=REPORT,
    deps=[name.split("/") for name in (HEALTH, WARNINGS, FEATURES, FAILURES, METRICS)],
    description="What the stream says of the machines, in pictures: the fleet at a glance, and the machine"
    " most likely to fail with its sensors, warnings and failures. It holds no data.",
    group_name="predictive_maintenance",
    owners=["team:plant-reliability"],
    kinds={"polars"},
    tags={"layer": "monitoring"},
    code_version=code_version(
        "defs/monitoring/predictive_maintenance.py", "learning/predictive_maintenance_plots.py"
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "scores_are_timely",
            asset=REPORT,
            description="99 % of the newest month's scores were published within the target of"
            " score_latency_p99_ms in seeds/metric_targets.csv.",
        )
    ],
)
def machine_fleet_report() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Draw what there is; before the first machine is scored there is nothing, and that is fine."""
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame

    metadata: dict[str, Any] = {"hours_scored": 0}
    measured: list[dict[str, Any]] = []
    with raise_as_failure(), connect(load_settings()) as connection:
        health = read_frame(
            connection,
            "select machine_id, as_of_at, failure_probability, remaining_hours, remaining_hours_low,"
            f" remaining_hours_high from {HEALTH.replace('/', '.')}"
            " where failure_probability is not null order by machine_id, as_of_at",
        )
        if health.height:
            measured = read_frame(
                connection,
                f"select value, is_met from {METRICS.replace('/', '.')}"
                " where metric = 'score_latency_p99_ms' order by as_of_at desc limit 1",
            ).to_dicts()
            metadata = {"hours_scored": health.height, **_pictures(connection, health)}
    yield dg.AssetCheckResult(
        check_name="scores_are_timely",
        passed=all(row["is_met"] for row in measured),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"p99_ms": measured[0]["value"]} if measured else {"p99_ms": "not measured yet"},
    )
    yield dg.MaterializeResult(metadata=metadata)


def _pictures(
    connection: "duckdb.DuckDBPyConnection", health: "pl.DataFrame"
) -> dict[str, dg.MarkdownMetadataValue]:
    """The fleet, and the machine whose newest score is the highest."""
    import polars as pl

    from orchestration.learning.predictive_maintenance_plots import draw_fleet, draw_machine
    from orchestration.warehouse.frames import read_frame

    since = [health["as_of_at"].min()]
    warnings = read_frame(
        connection, f"select machine_id, opened_at, closed_at from {WARNINGS.replace('/', '.')}"
    )
    failures = read_frame(
        connection,
        f"select machine_id, failed_at from {FAILURES.replace('/', '.')} where failed_at >= ?",
        since,
    )
    newest = health.group_by("machine_id").last()
    worst = newest.sort("failure_probability", "machine_id", descending=[True, False])
    machine = str(worst["machine_id"][0])
    of_it = pl.col("machine_id") == machine
    distances = read_frame(
        connection,
        "select as_of_at, sensor, deviation_distance_24h"
        f" from {FEATURES.replace('/', '.')} where machine_id = ? and as_of_at >= ?",
        [machine, *since],
    )
    one = draw_machine(
        health.filter(of_it),
        distances,
        warnings.filter(of_it),
        failures.filter(of_it)["failed_at"].to_list(),
    )
    return {
        "fleet": picture(draw_fleet(health, warnings, failures), "the fleet at a glance"),
        "machine_most_likely_to_fail": picture(one, "its health over time"),
    }
