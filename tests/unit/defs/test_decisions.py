"""A build tries each new model once, against the one in force; poison, crashes and missing labels change nothing."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from orchestration.build import prepare_manifest
from orchestration.learning.fraud_detection import FEATURES, Model
from orchestration.registry import decisions
from orchestration.settings import PROJECT_ROOT
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import replace_part

FIRST = datetime(2018, 6, 4)  # a Monday
USE_CASE = "fraud_detection"


def model(week: int, amount: float, night: float) -> Model:
    weights = [amount, 0.0, night, *[0.0] * 21]
    numbers = {"means": [0.0] * 24, "scales": [1.0] * 24, "weights": weights, "intercept": [-4.0]}
    return Model(FIRST + timedelta(weeks=week), "logistic_regression", 0.5, numbers)


def labelled(weeks: int) -> pl.DataFrame:
    """Payments at night of a large amount are fraud; sixty payments a day."""
    days = 7 * weeks + 14
    random, rows = np.random.default_rng(3), 60 * days
    amount, night = random.uniform(0, 200, rows).round(2), random.random(rows) < 0.3
    return pl.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "as_of_at": [FIRST - timedelta(days=14) + timedelta(minutes=24 * i) for i in range(rows)],
            "customer_id": random.integers(0, 4000, rows),
            "amount": amount,
            "is_weekend": random.random(rows) < 0.3,
            "is_night": night,
            **{name: random.uniform(1, 30, rows) for name in FEATURES[3:12]},
            **{name: np.zeros(rows) for name in FEATURES[12:]},
            "label": (amount > 120) & night,
        }
    ).with_columns(
        pl.col("amount").cast(pl.Decimal(12, 2)),
        label_known_at=pl.col("as_of_at") + timedelta(days=7),
    )  # fmt: skip


@pytest.fixture
def house(settings):
    """A warehouse with the rules, and labels for two whole test weeks."""
    prepare_manifest()
    rules = pl.read_csv(PROJECT_ROOT / "seeds" / "promotion_rules.csv")
    cards = pl.DataFrame({"cards_per_day": [10]})
    with connect(settings) as connection:
        for name, frame, key in (
            ("seeds.promotion_rules", rules, "metric"),
            ("seeds.fraud_investigation", cards, "cards_per_day"),
            ("training_sets.train_fraud_detection", labelled(2), "transaction_id"),
        ):
            replace_part(connection, settings, {name: frame}, where=key, equals=frame[key][0])
        yield connection


def train(connection, settings, one: Model, parameters: str | None = None) -> None:
    until = one.as_of_at + timedelta(days=7)
    row = pl.DataFrame(
        {
            "as_of_at": [one.as_of_at], "is_champion": [True], "model_version": [one.version],
            "parameters": [parameters or one.to_json()], "tested_from": [one.as_of_at],
            "tested_until": [until],
        }
    )  # fmt: skip
    replace_part(
        connection, settings, {"trained_models.fraud_detection": row},
        where="as_of_at", equals=one.as_of_at,
    )  # fmt: skip


def decide(connection, settings) -> list[tuple[str, str]]:
    """What is decided now."""
    from orchestration.defs.trained_models import decisions as asset

    before = len(decisions.read(connection, USE_CASE))
    context = SimpleNamespace(log=logging.getLogger("test"))
    asset._decide(context, connection, settings, USE_CASE, asset._fraud)
    found = decisions.read(connection, USE_CASE)[before:]
    return [(one.model_version, one.action) for one in found]


def in_force(connection, settings) -> str:
    return decisions.in_force(connection, settings, USE_CASE).get("", "")


def test_poison_crashes_and_labels_that_stop_leave_the_champion_in_force(house, settings):
    good, poisoned, crashing, later = (
        model(0, 0.02, 5.0), model(1, -0.02, -5.0), model(1, 0.03, 6.0), model(2, 0.03, 6.0),
    )  # fmt: skip
    train(house, settings, good)
    assert decide(house, settings) == [(good.version, "promoted")]  # the first, against the rule
    train(house, settings, poisoned)
    assert decide(house, settings) == [(poisoned.version, "refused")]
    train(house, settings, crashing, parameters="{}")
    assert decide(house, settings) == [(crashing.version, "refused")]
    train(house, settings, later)
    assert decide(house, settings) == []  # its test week has no labels
    assert in_force(house, settings) == good.version
    reasons = [one.reason for one in decisions.read(house, USE_CASE)]
    assert "average_precision" in reasons[1]
    assert "crashed" in reasons[2]


def test_a_better_model_takes_over_and_is_not_tried_again(house, settings):
    weak, strong = model(0, 0.0, 5.0), model(1, 0.05, 12.0)
    for one in (weak, strong):
        train(house, settings, one)
    assert decide(house, settings) == [(weak.version, "promoted"), (strong.version, "promoted")]
    assert decide(house, settings) == []
    assert in_force(house, settings) == strong.version
    rows = decisions.read(house, USE_CASE)
    assert [one.champion_before for one in rows] == ["", weak.version]
    assert {line["metric"] for line in rows[1].metrics} >= {"average_precision", "saved_per_day"}


def test_a_model_of_an_earlier_week_does_not_challenge_one_that_saw_its_test(house, settings):
    train(house, settings, model(1, 0.02, 5.0))
    assert len(decide(house, settings)) == 1
    train(house, settings, model(0, 0.05, 12.0))
    assert decide(house, settings) == []
