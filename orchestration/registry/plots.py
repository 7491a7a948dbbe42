"""What is drawn of a model for its run: the plots of its use case, from what it said on its test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestration.registry.described import Described
from orchestration.warehouse.frames import read_frame, table_exists

if TYPE_CHECKING:
    import duckdb


def pictures_of(
    connection: duckdb.DuckDBPyConnection, of: Described, row: dict[str, Any]
) -> dict[str, bytes]:
    """File name to PNG; none for a model that has no labelled test yet, or that its protocol left aside.

    Args:
        connection: to the warehouse.
        of: the use case.
        row: the model's row in `trained_models`.
    """
    if not row.get("is_champion", True):
        return {}
    if of.use_case == "fraud_detection" and table_exists(
        connection, "predictions", "fraud_backtest"
    ):
        from orchestration.learning.fraud_detection_plots import (
            draw_precision_recall,
            draw_saved_money,
        )

        tested = read_frame(
            connection, "from predictions.fraud_backtest where as_of_at = ?", [row["as_of_at"]]
        )
        if tested.filter("label").is_empty():
            return {}
        return {
            "precision_recall.png": draw_precision_recall(tested),
            "saved_money.png": draw_saved_money(tested, int(row["capacity_per_day"])),
        }
    if of.use_case == "predictive_maintenance" and table_exists(
        connection, "predictions", "maintenance_backtest"
    ):
        from orchestration.learning.predictive_maintenance_plots import (
            draw_calibration,
            draw_remaining_life,
        )

        tested = read_frame(
            connection,
            "from predictions.maintenance_backtest where machine_model = ? and as_of_at >= ? and as_of_at < ?",
            [row["machine_model"], row["tested_from"], row["tested_until"]],
        )
        if tested.filter("label").is_empty():
            return {}
        return {
            "calibration.png": draw_calibration(tested),
            "remaining_life.png": draw_remaining_life(tested),
        }
    if of.use_case == "customer_segmentation":
        from orchestration.learning.customer_segmentation import predict
        from orchestration.learning.customer_segmentation_plots import draw_segments

        model = of.load(row["parameters"])
        frame = read_frame(
            connection,
            "from training_sets.train_customer_segmentation where as_of_at = ? order by household_id",
            [row["as_of_at"]],
        )
        archetypes = read_frame(connection, "from seeds.segment_archetypes")
        if frame.is_empty():
            return {}
        return {"segments.png": draw_segments(model, frame, predict(model, frame), archetypes)}
    return {}
