"""What fraud detection promises: labelled payments going into the fit, their scores coming out."""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl

_FINITE = float("inf")


def _required(dtype: Any, *checks: pa.Check, unique: bool = False) -> pa.Column:
    return pa.Column(dtype, list(checks), nullable=False, unique=unique)


def _windows(measure: str, column: Any) -> dict[str, pa.Column]:
    return {f"{measure}_{days}d": column() for days in (1, 7, 30)}


_AMOUNT = pa.Check.ge(0)
_PAYMENT = {
    "transaction_id": _required(pl.Int64),
    "customer_id": _required(pl.Int64),
    "amount": _required(pl.Decimal(12, 2), _AMOUNT),
    "label": _required(pl.Boolean),
}


TRAINING_FRAME = pa.DataFrameSchema(
    {
        **_PAYMENT,
        "transaction_id": _required(pl.Int64, unique=True),
        "as_of_at": _required(pl.Datetime("us")),
        "is_weekend": _required(pl.Boolean),
        "is_night": _required(pl.Boolean),
        **_windows("customer_payments_count", lambda: _required(pl.Int64, pa.Check.ge(1))),
        **_windows(
            "customer_amount_avg",
            lambda: _required(pl.Float64, pa.Check.in_range(0, _FINITE, include_max=False)),
        ),
        **_windows("terminal_payments_count", lambda: _required(pl.Int64, pa.Check.ge(0))),
        **_windows("terminal_fraud_share", lambda: _required(pl.Float64, pa.Check.in_range(0, 1))),
        "label_known_at": _required(pl.Datetime("us")),
    },
    name="training_sets.train_fraud_detection",
    description="Labelled payments with what was known when each was made.",
    metadata={"version": 1},
)

BACKTEST = pa.DataFrameSchema(
    {
        "as_of_at": _required(pl.Datetime("us")),
        "algorithm": _required(pl.String, pa.Check.isin(["lightgbm", "logistic_regression"])),
        **_PAYMENT,
        "transaction_at": _required(pl.Datetime("us")),
        "score": _required(pl.Float64, pa.Check.in_range(0, 1)),
    },
    unique=["as_of_at", "algorithm", "transaction_id"],
    strict=True,
    name="predictions.fraud_backtest",
    description="The payments of each test week, scored by each of the week's models.",
    metadata={"version": 1},
)
