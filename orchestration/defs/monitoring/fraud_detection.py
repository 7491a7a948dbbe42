"""How the fraud stream does, to look at: the latency of its scores, and its features against the SQL ones."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from orchestration.defs.vocabulary import code_version, picture, raise_as_failure
from orchestration.settings import load_settings

REPORT = dg.AssetKey(["monitoring", "fraud_stream_report"])
SCORES, PARITY = "predictions/payment_scores", "monitoring/mon_fraud_detection__parity"
P99_MS = 10.0
"""A payment must be scored while its customer waits at the till; the target of 1,000 events/s."""


@dg.asset(
    key=REPORT,
    deps=[SCORES.split("/"), PARITY.split("/")],
    description="What the stream has scored, in a picture and a table: how long payments waited for"
    " their score, and how often each online feature differs from the SQL one. It holds no data.",
    group_name="fraud_detection",
    owners=["team:payments-risk"],
    kinds={"polars"},
    tags={"layer": "monitoring"},
    code_version=code_version("defs/monitoring", "learning/fraud_detection_plots.py"),
    check_specs=[
        dg.AssetCheckSpec(
            "scores_are_timely",
            asset=REPORT,
            description=f"99 % of payments are scored within {P99_MS:.0f} ms.",
        )
    ],
)
def fraud_stream_report() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Draw what there is; before the first payment is scored there is nothing, and that is fine."""
    from orchestration.learning.fraud_detection_plots import draw_latency, parity_table
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame

    metadata: dict[str, Any] = {"payments_scored": 0}
    p99: float | None = None
    with raise_as_failure(), connect(load_settings()) as connection:
        scores = read_frame(
            connection,
            f"select latency_ms, is_alert from {SCORES.replace('/', '.')} where latency_ms is not null",
        )
        if scores.height:
            parity = read_frame(connection, f"from {PARITY.replace('/', '.')}")
            p99 = scores["latency_ms"].cast(float).quantile(0.99, "linear")
            metadata = {
                "payments_scored": scores.height,
                "latency": picture(draw_latency(scores), "latency of scores"),
                "feature_parity": dg.MetadataValue.md(parity_table(parity)),
            }
    yield dg.AssetCheckResult(
        check_name="scores_are_timely",
        passed=p99 is None or p99 <= P99_MS,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"p99_ms": p99 if p99 is not None else "nothing scored yet"},
    )
    yield dg.MaterializeResult(metadata=metadata)
