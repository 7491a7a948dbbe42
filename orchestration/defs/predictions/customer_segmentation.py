"""The predictions of customer segmentation: each household's segment as of each month's end."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

from orchestration.defs.trained_models.customer_segmentation import (
    ARCHETYPES,
    COMMON,
    MODEL,
    TRAINING_SET,
    stored_model,
    training_frame,
)
from orchestration.defs.trained_models.decisions import model_of
from orchestration.defs.vocabulary import (
    broken_promises,
    column_lineage,
    lineage_from,
    month_end,
    picture,
    raise_as_failure,
    segmented_months,
    table_schema,
)
from orchestration.errors import MendableError
from orchestration.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb
    import polars as pl

PREDICTIONS = dg.AssetKey(["predictions", "customer_segments"])
PARTITIONS = segmented_months(load_settings())
DECISIONS = dg.AssetKey(["trained_models", "customer_segmentation__decisions"])


@dg.asset(
    key=PREDICTIONS,
    deps=[MODEL, DECISIONS, TRAINING_SET.split("/")],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description="Each household's segment as of a month's end, how sure the model is, and which"
    " model version said so.",
    tags={"layer": "predictions"},
    metadata={"dagster/table_name": f"lake.{'.'.join(PREDICTIONS.path)}"},
    check_specs=[
        dg.AssetCheckSpec(
            "matches_contract",
            asset=PREDICTIONS,
            blocking=True,
            description="What came out of the model holds the pandera contract SEGMENTS, and every"
            " household of the training set is in it once.",
        )
    ],
    **COMMON,
)
def customer_segments(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Score each month with the model in force for it; a frame that breaks its contract is not written."""
    from orchestration.contracts.customer_segmentation import SEGMENTS
    from orchestration.learning.customer_segmentation import FEATURES, predict
    from orchestration.learning.customer_segmentation_plots import draw_migration
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame, replace_part

    settings = load_settings()
    with raise_as_failure(), connect(settings) as connection:
        archetypes = read_frame(connection, f"from {ARCHETYPES.replace('/', '.')}")
        months = [month_end(key) for key in PARTITIONS.get_partition_keys()]
        in_force = _in_force(connection, settings, months)
        previous = _scored_before(connection, month_end(min(context.partition_keys)))
        for month in sorted(context.partition_keys):
            as_of_at = month_end(month)
            version = in_force.get(as_of_at)
            model = (
                model_of(connection, settings, "customer_segmentation", version)
                if version
                else stored_model(connection, as_of_at)
            )
            if model is None:
                raise MendableError(
                    f"the trained model of {month}",
                    expected=f"a row in {'.'.join(MODEL.path)}",
                    arrived="none",
                    mend=f"materialise {MODEL.to_user_string()} for {month} first",
                )
            _, frame = training_frame(connection, as_of_at)
            segments = predict(model, frame)
            broken = broken_promises(SEGMENTS, segments)
            if segments.height != frame.height:
                broken.append(f"{frame.height} households in, {segments.height} out")
            if broken:
                yield dg.AssetCheckResult(
                    check_name="matches_contract",
                    passed=False,
                    metadata={"month": month, "broken": broken},
                )
                raise dg.Failure(
                    f"the predictions of {month} do not hold their contract: {broken}",
                    allow_retries=False,
                )
            replace_part(
                connection,
                settings,
                {".".join(PREDICTIONS.path): segments},
                where="as_of_at",
                equals=as_of_at,
            )
            context.add_asset_metadata(
                {
                    **(
                        {
                            "plot": picture(
                                draw_migration(previous, segments, archetypes), f"moves to {month}"
                            )
                        }
                        if previous is not None
                        else {}
                    ),
                    "model_version": model.version,
                    "dagster/partition_row_count": segments.height,
                },
                asset_key=PREDICTIONS,
                partition_key=month,
            )
            previous = segments
        yield dg.AssetCheckResult(
            check_name="matches_contract",
            passed=True,
            metadata={"months": len(context.partition_keys)},
        )
        features = [(TRAINING_SET, feature.column) for feature in FEATURES]
        model_columns = [("/".join(MODEL.path), "parameters"), *features]
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": read_frame(
                    connection, f"select count(*) as n from {'.'.join(PREDICTIONS.path)}"
                )["n"][0],
                "dagster/column_schema": table_schema(SEGMENTS),
                **column_lineage(
                    lineage_from(
                        {
                            "household_id": [(TRAINING_SET, "household_id")],
                            "as_of_at": [(TRAINING_SET, "as_of_at")],
                            "segment_id": model_columns,
                            "segment_name": model_columns,
                            "confidence": model_columns,
                            "model_version": [("/".join(MODEL.path), "model_version")],
                        }
                    )
                ),
            }
        )


def _in_force(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, months: list[datetime]
) -> dict[datetime, str]:
    """The version in force for each month: what was decided on by then; for the newest, what is so now."""
    from orchestration.registry import decisions

    moves = [
        one
        for one in decisions.read(connection, "customer_segmentation")
        if one.action in decisions.MOVES
    ]
    found = {}
    for month in months:
        by_then = [one.champion_after for one in moves if one.as_of_at <= month]
        if by_then:
            found[month] = by_then[-1]
    now = decisions.in_force(connection, settings, "customer_segmentation").get("")
    if months and now and moves:
        found[months[-1]] = now
    return found


def _scored_before(
    connection: "duckdb.DuckDBPyConnection", as_of_at: datetime
) -> "pl.DataFrame | None":
    """The segments of the month before, as they were published."""
    from orchestration.warehouse.frames import read_frame, table_exists

    if not table_exists(connection, *PREDICTIONS.path):
        return None
    month_before = datetime(as_of_at.year - (as_of_at.month == 1), (as_of_at.month - 2) % 12 + 1, 1)
    rows = read_frame(
        connection,
        f"from {'.'.join(PREDICTIONS.path)} where as_of_at = ? order by household_id",
        [month_before],
    )
    return None if rows.is_empty() else rows
