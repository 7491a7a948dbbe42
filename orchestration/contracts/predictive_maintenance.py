"""What predictive maintenance promises: machine-hours by sensor going into the fit, health coming out."""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl

_FINITE = float("inf")


def _required(dtype: Any, *checks: pa.Check) -> pa.Column:
    return pa.Column(dtype, list(checks), nullable=False)


def _number(least: float = -_FINITE, *, nullable: bool = True) -> pa.Column:
    """A double that is finite, and at least so much."""
    check = pa.Check.in_range(least, _FINITE, include_min=least > -_FINITE, include_max=False)
    return pa.Column(pl.Float64, check, nullable=nullable)


_NAMED = pa.Check.str_length(min_value=1)
_HOUR = {
    "machine_id": _required(pl.String, _NAMED),
    "as_of_at": _required(pl.Datetime("us")),
    "machine_model": _required(pl.String, _NAMED),
}
_SHARE = pa.Check.in_range(0, 1)

TRAINING_FRAME = pa.DataFrameSchema(
    {
        **_HOUR,
        "sensor": _required(pl.String, _NAMED),
        "episode_number": _required(pl.Int64, pa.Check.ge(0)),
        "deviation_avg_24h": _number(),
        "deviation_std_24h": _number(0),
        "deviation_slope_24h": _number(),
        "deviation_distance_6h": _number(),
        "deviation_distance_24h": _number(),
        "hours_since_reading": _number(0),
        "is_stuck": pa.Column(pl.Boolean, nullable=True),
        "episode_hours": _number(0, nullable=False),
        "hours_since_maintenance": _number(0),
        "hours_since_recalibration": _number(0),
        "errors_count_24h": _number(0, nullable=False),
        "silent_sensors_count": _number(0, nullable=False),
        "failed_at": pa.Column(pl.Datetime("us"), nullable=True),
        "observed_until": _required(pl.Datetime("us")),
        "remaining_hours": _number(0, nullable=False),
        "is_censored": _required(pl.Boolean),
        "label": pa.Column(pl.Boolean, nullable=True),
    },
    unique=["machine_id", "as_of_at", "sensor"],
    name="training_sets.train_predictive_maintenance",
    description="Machine-hours by sensor, with how long the machine lasted as far as that is known.",
    metadata={"version": 1},
)


def _low_to_high(data: pa.PolarsData) -> pl.LazyFrame:
    remaining = pl.col("remaining_hours")
    ordered = remaining.is_between("remaining_hours_low", "remaining_hours_high")
    return data.lazyframe.select(ordered)


BACKTEST = pa.DataFrameSchema(
    {
        **_HOUR,
        "algorithm": _required(pl.String, pa.Check.isin(["lightgbm", "baseline"])),
        "is_champion": _required(pl.Boolean),
        "model_version": _required(pl.String),
        "failure_probability": _required(pl.Float64, _SHARE),
        "remaining_hours": _number(0, nullable=False),
        "remaining_hours_low": _number(0, nullable=False),
        "remaining_hours_high": _number(0, nullable=False),
        "has_warning": _required(pl.Boolean),
        "label": pa.Column(pl.Boolean, nullable=True),
        "observed_remaining_hours": _number(0, nullable=False),
        "is_censored": _required(pl.Boolean),
    },
    checks=pa.Check(_low_to_high, name="low <= remaining <= high"),
    unique=["algorithm", "machine_id", "as_of_at"],
    strict=True,
    name="predictions.maintenance_backtest",
    description="The machine-hours of each tested month, scored by each of the month's models.",
    metadata={"version": 1},
)

WARNINGS = pa.DataFrameSchema(
    {
        "warning_id": _required(pl.String, _NAMED),
        "machine_id": _required(pl.String, _NAMED),
        "machine_model": _required(pl.String, _NAMED),
        "algorithm": _required(pl.String, pa.Check.isin(["lightgbm", "baseline"])),
        "is_champion": _required(pl.Boolean),
        "model_version": _required(pl.String),
        "opened_at": _required(pl.Datetime("us")),
        "closed_at": pa.Column(pl.Datetime("us"), nullable=True),
        "closed_by": _required(pl.String, pa.Check.isin(["maintenance", "recovered", ""])),
        "failure_probability": _required(pl.Float64, _SHARE),
        "reasons": _required(pl.String),
    },
    checks=pa.Check(
        lambda data: data.lazyframe.select(
            pl.col("closed_at").is_null() | (pl.col("closed_at") > pl.col("opened_at"))
        ),
        name="opened before it is closed",
    ),
    unique=["algorithm", "warning_id"],
    strict=True,
    name="predictions.warning_backtest",
    description="The warnings that each of the models would have opened in the tested months.",
    metadata={"version": 1},
)
