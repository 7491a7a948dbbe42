"""The contracts of customer segmentation: what they let in, what they keep out."""

from __future__ import annotations

import datetime as dt

import pandera.errors
import polars as pl
import pytest

from orchestration.contracts.customer_segmentation import SEGMENTS, TRAINING_FRAME
from orchestration.contracts.raw import version_of

MONTH = dt.datetime(2017, 2, 1)


def training_frame(**changes) -> pl.DataFrame:
    """Two households, the second without purchases in any window; `changes` go to the second."""
    active, lapsed = {}, {}
    for name, column in TRAINING_FRAME.columns.items():
        active[name] = {pl.String: "2", pl.Boolean: True}.get(column.dtype.type, 1)
        lapsed[name] = {pl.Boolean: False}.get(column.dtype.type, 0)
        if column.nullable:
            lapsed[name] = None
    rows = [
        active | {"household_id": 1, "as_of_at": MONTH},
        lapsed | {"household_id": 2, "as_of_at": MONTH} | changes,
    ]
    schema = {name: column.dtype.type for name, column in TRAINING_FRAME.columns.items()}
    return pl.DataFrame(rows, schema=schema, strict=False)


def segments(**changes) -> pl.DataFrame:
    row = {
        "household_id": 1,
        "as_of_at": MONTH,
        "segment_id": 1,
        "segment_name": "Champions",
        "confidence": 0.5,
        "model_version": "customer_segmentation-2017-01-0123abcd",
    }
    schema = {name: column.dtype.type for name, column in SEGMENTS.columns.items()}
    return pl.DataFrame([row, row | {"household_id": 2} | changes], schema=schema)


def broken(schema, frame) -> str:
    with pytest.raises(pandera.errors.SchemaErrors) as error:
        schema.validate(frame, lazy=True)
    return str(error.value)


def test_a_month_of_active_and_lapsed_households_is_let_in():
    assert TRAINING_FRAME.validate(training_frame(), lazy=True).height == 2


def test_segments_of_a_month_are_let_out():
    assert SEGMENTS.validate(segments(), lazy=True).height == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("household_id", 1),
        ("household_id", 0),
        ("as_of_at", None),
        ("baskets_count_90d", None),
        ("sales_usd_sum_90d", -1),
        ("fresh_share_90d", 1.01),
        ("fresh_share_90d", float("nan")),
        ("basket_usd_avg_90d", float("nan")),
        ("basket_usd_avg_90d", float("inf")),
        ("campaign_response_rate_365d", -0.1),
        ("sales_trend_60d", -1.01),
        ("has_demographics", None),
    ],
)
def test_a_training_set_that_is_out_of_bounds_is_kept_out(column, value):
    assert column in broken(TRAINING_FRAME, training_frame(**{column: value}))


def test_a_training_set_of_two_months_is_kept_out():
    frame = training_frame(as_of_at=dt.datetime(2017, 3, 1))
    assert "one_month" in broken(TRAINING_FRAME, frame)


def test_a_training_set_without_a_column_is_kept_out():
    assert "fresh_share_90d" in broken(TRAINING_FRAME, training_frame().drop("fresh_share_90d"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("household_id", 1),
        ("segment_id", 0),
        ("segment_name", ""),
        ("segment_name", None),
        ("confidence", -0.01),
        ("confidence", 1.01),
        ("confidence", float("nan")),
        ("model_version", None),
        ("model_version", "latest"),
    ],
)
def test_segments_that_say_something_impossible_are_kept_in(column, value):
    assert column in broken(SEGMENTS, segments(**{column: value}))


def test_segments_carry_nothing_else():
    assert "age_band" in broken(SEGMENTS, segments().with_columns(age_band=pl.lit("35-44")))


def test_both_contracts_have_a_version():
    assert (version_of(TRAINING_FRAME), version_of(SEGMENTS)) == ("2", "1")
