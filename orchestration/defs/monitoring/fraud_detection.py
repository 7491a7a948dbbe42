"""How the fraud stream does, to look at: the latency of its scores, and its features against the SQL ones."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from orchestration.defs.vocabulary import code_version, picture, raise_as_failure
from orchestration.settings import load_settings

REPORT = dg.AssetKey(["monitoring", "fraud_stream_report"])
SCORES, PARITY, METRICS = (
    "predictions/payment_scores",
    "monitoring/mon_fraud_detection__parity",
    "monitoring/mon_fraud_detection__metrics",
)


@dg.asset(
    key=REPORT,
    deps=[SCORES.split("/"), PARITY.split("/"), METRICS.split("/")],
    description="What the stream has scored, in a picture and a table: how long payments waited for"
    " their score, and how often each online feature differs from the SQL one. It holds no data.",
    group_name="fraud_detection",
    owners=["team:payments-risk"],
    kinds={"polars"},
    tags={"layer": "monitoring"},
    code_version=code_version(
        "defs/monitoring/fraud_detection.py", "learning/fraud_detection_plots.py"
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "scores_are_timely",
            asset=REPORT,
            description="99 % of the newest week's payments were scored within the target of"
            " score_latency_p99_ms in seeds/metric_targets.csv.",
        )
    ],
)
def fraud_stream_report() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Draw what there is; before the first payment is scored there is nothing, and that is fine."""
    from orchestration.learning.fraud_detection_plots import draw_latency, parity_table
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame

    metadata: dict[str, Any] = {"payments_scored": 0}
    measured: list[dict[str, Any]] = []
    with raise_as_failure(), connect(load_settings()) as connection:
        scores = read_frame(
            connection,
            f"select latency_ms, is_alert from {SCORES.replace('/', '.')} where latency_ms is not null",
        )
        if scores.height:
            parity = read_frame(connection, f"from {PARITY.replace('/', '.')}")
            measured = read_frame(
                connection,
                f"select value, is_met from {METRICS.replace('/', '.')}"
                " where metric = 'score_latency_p99_ms' order by as_of_at desc limit 1",
            ).to_dicts()
            metadata = {
                "payments_scored": scores.height,
                "latency": picture(draw_latency(scores), "latency of scores"),
                "feature_parity": dg.MetadataValue.md(parity_table(parity)),
            }
    yield dg.AssetCheckResult(
        check_name="scores_are_timely",
        passed=all(row["is_met"] for row in measured),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"p99_ms": measured[0]["value"]} if measured else {"p99_ms": "not measured yet"},
    )
    yield dg.MaterializeResult(metadata=metadata)
