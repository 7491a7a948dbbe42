"""Three models of fraud detection in a warehouse, released: what the registry is told of."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from orchestration.learning.fraud_detection import Model
from orchestration.registry import decisions
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import replace_part
from orchestration.warehouse.releases import Release, release

USE_CASE = "fraud_detection"


def line(day: int, weight: float = 0.1) -> Model:
    zeros = [0.0] * 24
    return Model(
        datetime(2018, 6, day), "logistic_regression", 0.5,
        {"means": zeros, "scales": [1.0] * 24, "weights": [weight, *zeros[1:]], "intercept": [0.0]},
    )  # fmt: skip


MODELS = [line(4), line(11), line(18)]


def add(connection, settings, model: Model) -> None:
    frame = pl.DataFrame(
        {
            "as_of_at": [model.as_of_at],
            "algorithm": [model.algorithm],
            "is_champion": [True],
            "model_version": [model.version],
            "parameters": [model.to_json()],
            "average_precision": [0.5],
            "trained_from": [model.as_of_at - timedelta(days=34)],
            "trained_until": [model.as_of_at - timedelta(days=27)],
            "training_content_hash": [f"abc{model.as_of_at.day}"],
            "capacity_per_day": [100],
        }
    )
    replace_part(
        connection, settings, {"trained_models.fraud_detection": frame},
        where="as_of_at", equals=model.as_of_at,
    )  # fmt: skip


def decision(model: Model, before: str = "", by: str = "build") -> decisions.Decision:
    return decisions.Decision(
        "", "promoted", model.version, model.as_of_at, before, model.version, "better", by
    )


def fill(settings: Settings) -> Release:
    """The release; the first model is decided on."""
    with connect(settings) as connection:
        training = pl.DataFrame({"transaction_id": [1, 2], "label": [True, False]})
        scores = pl.DataFrame(
            {"transaction_id": [1], "score": [0.9], "model_version": [MODELS[2].version]}
        )
        raw = training.with_columns(_batch_id=pl.lit("b1"), _source_position=pl.lit("p1"))
        for name, frame in {
            "training_sets.train_fraud_detection": training,
            "predictions.payment_scores": scores,
            "raw.payments": raw,
        }.items():
            replace_part(connection, settings, {name: frame}, where="transaction_id", equals=-1)
        for model in MODELS:
            add(connection, settings, model)
        decisions.write(connection, settings, USE_CASE, [decision(MODELS[0])])
        one = release(connection, settings, checks_passed=1, checks_warned=0)
        assert one is not None
        return one
