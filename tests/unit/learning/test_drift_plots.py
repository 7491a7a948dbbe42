"""The picture of drift tests: the week's largest moves, what has drifted in words, nothing where nothing is known."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO

import polars as pl
from PIL import Image

from orchestration.learning.drift_plots import MOST_ROWS, draw_drift, summary


def verdicts(rows: int, *, drifted: int = 0, unknown: int = 0) -> pl.DataFrame:
    """A week of tests of which the first have drifted and the last have not enough data, and a week before it."""
    place = pl.int_range(rows)
    known, moved = place < rows - unknown, place < drifted
    week = pl.select(
        as_of_at=pl.lit(datetime(2024, 3, 8)),
        subject=pl.lit("mixer"),
        feature=pl.format("feature_{}", place),
        statistic=pl.lit("mean"),
        current_days=pl.lit(14).repeat_by(rows).explode(),
        reference_days=42,
        difference=pl.when(moved).then(-3.0).otherwise(0.2),
        threshold=pl.when(known).then(1.0),
        is_drifted=moved,
        verdict=pl.when(moved)
        .then(pl.lit("drifted"))
        .when(known)
        .then(pl.lit("stable"))
        .otherwise(pl.lit("not_enough_data")),
    )
    before = week.with_columns(as_of_at=pl.lit(datetime(2024, 3, 1)), verdict=pl.lit("drifted"))
    return pl.concat([before, week])


def test_a_week_is_a_picture_of_its_largest_moves():
    small = Image.open(BytesIO(draw_drift(verdicts(5, drifted=2, unknown=1)) or b""))
    large = draw_drift(verdicts(200, drifted=2)) or b""
    assert small.size[1] < Image.open(BytesIO(large)).size[1] < 120 + 25 * MOST_ROWS
    assert len(large) < 120_000


def test_what_has_drifted_stands_in_words():
    newest = verdicts(5, drifted=2, unknown=1).tail(5)
    assert summary(newest) == (
        "2 of 5 tests have drifted",
        "As of 2024-03-08, 14 days against 42 before: 2 stable, 1 without enough data",
    )
    assert summary(verdicts(5).tail(5))[0] == "Nothing has drifted"


def test_where_nothing_could_be_tested_there_is_no_picture():
    assert draw_drift(verdicts(3, unknown=3)) is None
    assert draw_drift(verdicts(3).clear()) is None
