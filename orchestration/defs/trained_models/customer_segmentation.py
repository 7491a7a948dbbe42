"""The trained model of customer segmentation: one fit per month, and its segments in words."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.defs.vocabulary import (
    broken_promises,
    code_version,
    month_end,
    picture,
    raise_as_failure,
    segmented_months,
    table_metadata,
)
from orchestration.settings import load_settings

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from orchestration.learning.customer_segmentation import Fit, SegmentationModel

TRAINING_SET = "training_sets/train_customer_segmentation"
ARCHETYPES = "seeds/segment_archetypes"
MODEL = dg.AssetKey(["trained_models", "customer_segmentation"])
SEGMENTS = dg.AssetKey(["trained_models", "customer_segmentation__segments"])
COMMON: dict[str, Any] = {
    "group_name": "customer_segmentation",
    "owners": ["team:marketing-analytics"],
    "kinds": {"scikitlearn", "polars"},
    "code_version": code_version(
        "learning/customer_segmentation.py",
        "learning/customer_segmentation_plots.py",
        "contracts/customer_segmentation.py",
    ),
}


@dg.multi_asset(
    name="train_customer_segmentation",
    partitions_def=segmented_months(load_settings()),
    backfill_policy=dg.BackfillPolicy.single_run(),
    specs=[
        dg.AssetSpec(
            MODEL,
            deps=[TRAINING_SET.split("/"), ARCHETYPES.split("/")],
            description="One trained model per month: k-means on how households buy. A row holds"
            " the model (JSON, numbers only), how it was chosen, and the snapshot it learned from.",
            tags={"layer": "trained_models"},
            metadata={"dagster/table_name": f"lake.{'.'.join(MODEL.path)}"},
            **COMMON,
        ),
        dg.AssetSpec(
            SEGMENTS,
            deps=[TRAINING_SET.split("/"), ARCHETYPES.split("/")],
            description="The segments of each month's model, in words and numbers for marketing.",
            tags={"layer": "trained_models"},
            metadata={"dagster/table_name": f"lake.{'.'.join(SEGMENTS.path)}"},
            **COMMON,
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "training_frame_matches_contract",
            asset=MODEL,
            blocking=True,
            description="What went into the fit holds the pandera contract TRAINING_FRAME.",
        ),
        dg.AssetCheckSpec(
            "describes_every_household",
            asset=SEGMENTS,
            blocking=True,
            description="The segments' sizes add up to the households of the training set.",
        ),
    ],
)
def train_customer_segmentation(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Fit each month in turn; a month's names follow from those of the month before."""
    from orchestration.contracts.customer_segmentation import TRAINING_FRAME
    from orchestration.learning.customer_segmentation import describe, fit, predict
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame, replace_part

    settings = load_settings()
    described: dict[str, bool] = {}
    with raise_as_failure(), connect(settings) as connection:
        archetypes = read_frame(connection, f"from {ARCHETYPES.replace('/', '.')}")
        previous = segments_before(connection, month_end(min(context.partition_keys)))
        for month in sorted(context.partition_keys):
            as_of_at = month_end(month)
            snapshot, frame = training_frame(connection, as_of_at)
            broken = broken_promises(TRAINING_FRAME, frame)
            if broken:
                yield dg.AssetCheckResult(
                    asset_key=MODEL,
                    check_name="training_frame_matches_contract",
                    passed=False,
                    metadata={"month": month, "broken": broken},
                )
                raise dg.Failure(
                    f"the training set of {month} does not hold its contract: {broken}",
                    allow_retries=False,
                )
            fitted = fit(frame, archetypes, previous)
            segments = predict(fitted.model, frame)
            words = describe(fitted.model, frame, segments, archetypes, previous)
            replace_part(
                connection,
                settings,
                {
                    "trained_models.customer_segmentation": _row(fitted, frame, snapshot),
                    "trained_models.customer_segmentation__segments": words,
                },
                where="as_of_at",
                equals=as_of_at,
            )
            described[month] = words["households_count"].sum() == frame.height
            _tell(context, month, fitted, frame, segments, words, archetypes, snapshot)
            previous = segments
        yield dg.AssetCheckResult(
            asset_key=MODEL,
            check_name="training_frame_matches_contract",
            passed=True,
            metadata={"months": len(described)},
        )
        yield dg.AssetCheckResult(
            asset_key=SEGMENTS,
            check_name="describes_every_household",
            passed=all(described.values()),
            metadata={
                "months_that_do_not": [m for m, added_up in described.items() if not added_up]
            },
        )
        for key in (MODEL, SEGMENTS):
            yield dg.MaterializeResult(asset_key=key, metadata=_table_metadata(connection, key))


def training_frame(
    connection: "duckdb.DuckDBPyConnection", as_of_at: datetime
) -> "tuple[int, pl.DataFrame]":
    """The warehouse's snapshot and the training set's rows as of a month's end.

    Raises:
        MendableError: the training set has no such month.
    """
    from orchestration.errors import MendableError
    from orchestration.warehouse.frames import current_snapshot, read_frame

    snapshot = current_snapshot(connection)
    frame = read_frame(
        connection,
        f"select * from {TRAINING_SET.replace('/', '.')} at (version => {snapshot})"
        " where as_of_at = ? order by household_id",
        [as_of_at],
    )
    if frame.is_empty():
        raise MendableError(
            f"{TRAINING_SET.replace('/', '.')} as of {as_of_at:%Y-%m-%d}",
            expected="a row per household",
            arrived="no rows: the source holds no purchase after the month's end yet, or none before",
            mend="land that month first, or narrow WATERSHED_SEGMENTATION_FIRST_MONTH and"
            " WATERSHED_SEGMENTATION_LAST_MONTH",
        )
    return snapshot, frame


def stored_model(
    connection: "duckdb.DuckDBPyConnection", as_of_at: datetime
) -> "SegmentationModel | None":
    """The trained model as of a month's end, if that month was trained."""
    from orchestration.learning.customer_segmentation import SegmentationModel
    from orchestration.warehouse.frames import read_frame, table_exists

    if not table_exists(connection, *MODEL.path):
        return None
    rows = read_frame(
        connection, f"select parameters from {'.'.join(MODEL.path)} where as_of_at = ?", [as_of_at]
    )
    return SegmentationModel.from_json(rows["parameters"][0]) if rows.height else None


def segments_before(
    connection: "duckdb.DuckDBPyConnection", as_of_at: datetime
) -> "pl.DataFrame | None":
    """Every household's segment as of the month before, by that month's stored model."""
    from orchestration.learning.customer_segmentation import predict

    month_before = datetime(as_of_at.year - (as_of_at.month == 1), (as_of_at.month - 2) % 12 + 1, 1)
    model = stored_model(connection, month_before)
    if model is None:
        return None
    _, frame = training_frame(connection, month_before)
    return predict(model, frame)


def _row(fitted: "Fit", frame: "pl.DataFrame", snapshot: int) -> "pl.DataFrame":
    import polars as pl

    from orchestration.learning.customer_segmentation import ALGORITHM

    model = fitted.model
    return pl.DataFrame(
        {
            "as_of_at": [model.as_of_at],
            "model_version": [model.version],
            "algorithm": [ALGORITHM],
            "training_set": [TRAINING_SET.replace("/", ".")],
            "training_snapshot_id": [snapshot],
            "training_rows": [frame.height],
            "segments_count": [len(model.segment_names)],
            "silhouette": [fitted.silhouette],
            "parameters": [model.to_json()],
            "criterion": [json.dumps(fitted.criterion)],
        },
        schema_overrides={"as_of_at": pl.Datetime("us"), "segments_count": pl.Int32},
    )


def _tell(
    context: dg.AssetExecutionContext,
    month: str,
    fitted: "Fit",
    frame: "pl.DataFrame",
    segments: "pl.DataFrame",
    words: "pl.DataFrame",
    archetypes: "pl.DataFrame",
    snapshot: int,
) -> None:
    """Show a month's fit: a line in the log, figures and the plot on its partition."""
    from orchestration.learning.customer_segmentation_plots import draw_segments

    model = fitted.model
    context.log.info(
        f"{month}: {len(model.segment_names)} segments, silhouette {fitted.silhouette:.2f}"
    )
    context.add_asset_metadata(
        {
            "plot": picture(
                draw_segments(model, frame, segments, archetypes), f"segments of {month}"
            ),
            "model_version": model.version,
            "segments": len(model.segment_names),
            "silhouette": fitted.silhouette,
            "names_kept_from_last_month": ", ".join(fitted.kept_names) or "none",
            "numbers_of_segments_tried": dg.MetadataValue.table(
                [dg.TableRecord(entry) for entry in fitted.criterion]
            ),
            "training_rows": frame.height,
            "training_snapshot": snapshot,
            "dagster/partition_row_count": 1,
        },
        asset_key=MODEL,
        partition_key=month,
    )
    table = "\n".join(
        f"| {name} | {share:.0%} | {text} |"
        for name, share, text in words.select(
            "segment_name", "households_share", "description"
        ).iter_rows()
    )
    context.add_asset_metadata(
        {
            "segments": dg.MetadataValue.md(
                f"| segment | share | what it is |\n|---|---|---|\n{table}"
            ),
            "dagster/partition_row_count": words.height,
        },
        asset_key=SEGMENTS,
        partition_key=month,
    )


def _table_metadata(connection: "duckdb.DuckDBPyConnection", key: dg.AssetKey) -> dict[str, Any]:
    """Row count, columns and column lineage of one of the two tables."""
    from orchestration.learning.customer_segmentation import FEATURES

    features = [(TRAINING_SET, feature.column) for feature in FEATURES]
    names = [*features, (ARCHETYPES, "segment_name")]
    sources: dict[str, list[tuple[str, str]]] = {
        "as_of_at": [(TRAINING_SET, "as_of_at")],
        "segment_name": names,
        "parameters": names,
        "description": [*names, (ARCHETYPES, "campaign_idea")],
        "training_rows": [(TRAINING_SET, "household_id")],
        "training_set": [],
        "training_snapshot_id": [],
        "algorithm": [],
    }
    return table_metadata(connection, ".".join(key.path), sources, features)
