"""The contracts of predictive maintenance: what they let in, what they keep out."""

from __future__ import annotations

from datetime import datetime, timedelta

import pandera.errors
import polars as pl
import pytest

from orchestration.contracts.predictive_maintenance import BACKTEST, TRAINING_FRAME, WARNINGS

HOUR = datetime(2025, 3, 1, 5)


def rows(contract, **changes) -> pl.DataFrame:
    """Two machine-hours that hold the contract; `changes` go to the second."""
    kinds = {pl.String: "x", pl.Boolean: True, pl.Datetime: HOUR, pl.Int64: 1, pl.Float64: 0.5}
    row = {name: kinds[column.dtype.type.base_type()] for name, column in contract.columns.items()}
    if contract is BACKTEST:
        row["algorithm"] = "lightgbm"
    second = row | {"machine_id": "y"} | changes
    schema = {name: column.dtype.type for name, column in contract.columns.items()}
    return pl.DataFrame([row, second], schema=schema | {"as_of_at": pl.Datetime("us")})


def broken(contract, frame) -> str:
    with pytest.raises(pandera.errors.SchemaErrors) as error:
        contract.validate(frame, lazy=True)
    return str(error.value)


@pytest.mark.parametrize("contract", [TRAINING_FRAME, BACKTEST])
def test_machine_hours_are_let_through(contract):
    assert contract.validate(rows(contract), lazy=True).height == 2


def test_a_silent_sensor_and_an_unknown_outcome_are_let_in():
    nothing = {n: None for n, c in TRAINING_FRAME.columns.items() if c.nullable}
    assert {"deviation_distance_24h", "is_stuck", "failed_at", "label"} < set(nothing)
    assert TRAINING_FRAME.validate(rows(TRAINING_FRAME, **nothing), lazy=True).height == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("machine_id", "x"),  # the same machine, hour and sensor twice
        ("machine_id", ""),
        ("sensor", None),
        ("episode_number", -1),
        ("deviation_avg_24h", float("inf")),
        ("deviation_distance_6h", float("nan")),
        ("deviation_std_24h", -0.1),
        ("hours_since_reading", -0.1),
        ("remaining_hours", -1.0),
        ("observed_until", None),
        ("is_censored", None),
    ],
)
def test_a_training_set_that_is_out_of_bounds_is_kept_out(column, value):
    assert column in broken(TRAINING_FRAME, rows(TRAINING_FRAME, **{column: value}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("machine_id", "x"),
        ("algorithm", "oracle"),
        ("failure_probability", 1.1),
        ("failure_probability", float("nan")),
        ("remaining_hours", -1.0),
        ("remaining_hours_low", 0.6),
        ("remaining_hours_high", 0.4),
        ("has_warning", None),
    ],
)
def test_a_backtest_that_is_out_of_bounds_is_not_let_out(column, value):
    said = broken(BACKTEST, rows(BACKTEST, **{column: value}))
    assert column in said or "low <= remaining <= high" in said


def warnings(**changes) -> pl.DataFrame:
    """A warning that is open and one that was closed; `changes` go to the second."""
    opened = {
        "warning_id": "x@2025-03-01T05", "machine_id": "x", "machine_model": "press",
        "algorithm": "lightgbm", "is_champion": True, "model_version": "v", "opened_at": HOUR,
        "closed_at": None, "closed_by": "", "failure_probability": 0.5, "reasons": "",
    }  # fmt: skip
    closed = {"warning_id": "y", "closed_at": HOUR + timedelta(hours=6), "closed_by": "recovered"}
    return pl.DataFrame(
        [opened, opened | closed | changes],
        schema={name: column.dtype.type for name, column in WARNINGS.columns.items()}
        | {"opened_at": pl.Datetime("us"), "closed_at": pl.Datetime("us")},
    )


def test_warnings_open_and_closed_are_let_out():
    assert WARNINGS.validate(warnings(), lazy=True).height == 2


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("warning_id", "x@2025-03-01T05", "warning_id"),
        ("closed_at", HOUR, "opened before it is closed"),
        ("closed_by", "boredom", "closed_by"),
        ("failure_probability", 1.5, "failure_probability"),
        ("reasons", None, "reasons"),
    ],
)
def test_a_warning_that_cannot_be_is_not_let_out(column, value, said):
    assert said in broken(WARNINGS, warnings(**{column: value}))
