"""Fraud detection learns by the published protocol, and a stored model says the same as the fitted one."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest

from orchestration.errors import MendableError
from orchestration.learning import fraud_detection as learning
from orchestration.learning.fraud_detection import (
    ALGORITHMS,
    DERIVED,
    FEATURES,
    BaselineRule,
    Model,
    Week,
)
from orchestration.learning.fraud_detection_plots import (
    draw_latency,
    draw_precision_recall,
    draw_saved_money,
    parity_table,
    saved_by_cards,
)

MONDAY = datetime(2018, 8, 6)
DAY = timedelta(days=1)


@cache
def payments(seed: int = 1, rows: int = 6000) -> pl.DataFrame:
    """Three weeks around MONDAY in which large amounts and bad terminals are mostly fraud."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 21 * 86_400, rows))
    amount = rng.gamma(2, 30, rows).round(2)
    share = np.where(rng.random(rows) < 0.05, rng.random(rows), 0)
    risky = (amount > 180) | (share > 0.4)
    return pl.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "as_of_at": [MONDAY - 14 * DAY + timedelta(seconds=int(s)) for s in at],
            "customer_id": rng.integers(0, 900, rows),
            "amount": amount,
            **{name: rng.random(rows) < 0.3 for name in FEATURES[1:3]},
            **{name: rng.integers(1, 30, rows) for name in FEATURES[3:6]},
            **{name: rng.gamma(9, 7, rows) for name in FEATURES[6:9]},
            **{name: rng.integers(0, 40, rows) for name in FEATURES[9:12]},
            **dict.fromkeys(FEATURES[12:], share),
            "label": np.where(risky, rng.random(rows) < 0.8, rng.random(rows) < 0.003),
        }
    ).with_columns(
        pl.col("amount").cast(pl.Decimal(12, 2)), label_known_at=pl.col("as_of_at") + 7 * DAY
    )


@cache
def fitted(algorithm: str) -> Model:
    return learning.fit(learning.training_rows(payments(), Week(MONDAY)), algorithm, 100, MONDAY)


def test_a_week_learns_from_its_training_week_and_from_no_label_known_later():
    frame = payments().with_columns(
        label_known_at=pl.when(pl.col("transaction_id") % 10 == 0)
        .then(MONDAY + DAY)
        .otherwise("label_known_at")
    )
    rows = learning.training_rows(frame, Week(MONDAY))
    assert rows.height > 1000
    assert rows["as_of_at"].min() >= MONDAY - 14 * DAY
    assert rows["as_of_at"].max() < MONDAY - 7 * DAY
    assert (rows["label_known_at"] <= MONDAY).all()
    assert not (rows["transaction_id"] % 10 == 0).any()


def test_a_card_is_tested_until_the_day_on_which_its_fraud_was_known_and_no_longer():
    tested = learning.test_rows(payments(), Week(MONDAY))
    frauds = payments().filter("label")
    kept = set(tested["transaction_id"])
    removed = 0
    for row in payments().filter(pl.col("as_of_at") >= MONDAY).iter_rows(named=True):
        day = row["as_of_at"].replace(hour=0, minute=0, second=0)
        known = frauds.filter(
            (pl.col("customer_id") == row["customer_id"])
            & (pl.col("as_of_at") >= MONDAY - 14 * DAY)
            & (pl.col("as_of_at") < day - 7 * DAY)
        )
        assert (row["transaction_id"] in kept) == known.is_empty()
        removed += not known.is_empty()
    assert 0 < removed < 2000
    assert tested["as_of_at"].min() >= MONDAY
    assert tested["as_of_at"].max() < MONDAY + 7 * DAY


def test_weeks_begin_after_a_month_of_history_and_end_with_the_last_labelled_week():
    found = learning.weeks(datetime(2018, 4, 1, 0, 0, 31), datetime(2018, 9, 30, 23, 59, 57))
    assert [week.as_of_at.weekday() for week in found] == [0] * len(found)
    assert found[0].trained_from >= datetime(2018, 4, 1) + 37 * DAY
    assert found[0].trained_from - 7 * DAY < datetime(2018, 4, 1) + 37 * DAY
    assert found[-1].trained_until == datetime(2018, 10, 1)
    assert learning.weeks(datetime(2018, 4, 1), datetime(2018, 4, 20)) == []
    one_day_less = learning.weeks(datetime(2018, 4, 1), datetime(2018, 9, 29, 23, 59))
    assert one_day_less[-1].trained_until == datetime(2018, 9, 24)


def test_card_precision_is_the_share_of_the_highest_cards_that_were_defrauded_that_day():
    rows = [  # day, card, score, fraud
        (0, 1, 0.9, False), (0, 1, 0.1, True), (0, 2, 0.8, False), (0, 3, 0.7, True),
        (1, 1, 0.9, False), (1, 2, 0.2, True), (1, 3, 0.3, False),
    ]  # fmt: skip
    tested = pl.DataFrame(
        {
            "as_of_at": [MONDAY + day * DAY for day, *_ in rows],
            "customer_id": [card for _, card, *_ in rows],
            "label": [fraud for *_, fraud in rows],
        }
    )
    scores = np.array([score for _, _, score, _ in rows])
    assert learning.card_precision(tested, scores, capacity=2) == (1 / 2 + 0 / 2) / 2
    assert learning.card_precision(tested, scores, capacity=3) == (2 / 3 + 1 / 3) / 2
    assert learning.card_precision(tested, scores, capacity=100) == (2 / 100 + 1 / 100) / 2
    metrics = learning.evaluate(tested, scores)
    assert metrics is not None
    # three frauds; at 0.7 one of 4 payments, at 0.2 two of 6, at 0.1 three of 7
    assert metrics.average_precision == pytest.approx((1 / 4 + 2 / 6 + 3 / 7) / 3)
    assert metrics.auc_roc == pytest.approx((1 + 0 + 0) / 12)
    assert learning.evaluate(tested.filter(~pl.col("label")), scores[:4]) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stored_model_scores_bit_for_bit_as_the_fitted_one(algorithm):
    model = fitted(algorithm)
    matrix = learning.matrix_of(payments())
    loaded = Model.from_json(model.to_json())
    assert loaded.version == model.version
    assert loaded.alert_threshold == model.alert_threshold
    scores = model.score(matrix)
    assert scores.shape == (len(matrix),)
    assert np.array_equal(loaded.score(matrix), scores)
    one_by_one = np.concatenate([loaded.score(matrix[i : i + 1]) for i in range(200)])
    assert np.allclose(one_by_one, scores[:200], rtol=1e-12, atol=0)
    assert scores.min() >= 0
    assert scores.max() <= 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_rows_in_any_order_give_the_same_model(algorithm):
    rows = learning.training_rows(payments(), Week(MONDAY)).sample(fraction=1, shuffle=True, seed=3)
    assert learning.fit(rows, algorithm, 100).to_json() == fitted(algorithm).to_json()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_finds_the_frauds_of_the_following_week(algorithm):
    tested = learning.test_rows(payments(), Week(MONDAY))
    metrics = learning.evaluate(tested, fitted(algorithm).score(learning.matrix_of(tested)))
    assert metrics is not None
    assert metrics.average_precision > 5 * tested["label"].mean()


def test_a_damaged_model_is_refused_in_words():
    stored = json.loads(fitted("logistic_regression").to_json())
    damaged = {
        "another threshold": {**stored, "alert_threshold": 0.123},
        "other features": {**stored, "features": list(FEATURES[::-1])},
        "no parameters": {name: value for name, value in stored.items() if name != "parameters"},
    }
    for text in ["", "{}", "[]", *map(json.dumps, damaged.values())]:
        with pytest.raises(MendableError, match="unchanged"):
            Model.from_json(text)


def test_too_few_frauds_are_refused_in_words():
    rows = learning.training_rows(payments(), Week(MONDAY)).with_columns(label=pl.lit(False))
    with pytest.raises(MendableError, match="0 that are"):
        learning.fit(rows, "lightgbm", 100)


def payment(**values: float) -> np.ndarray:
    usual = {"amount": 50.0, "customer_payments_count_30d": 20.0, "customer_payments_count_7d": 5.0}
    averages = {f"customer_amount_avg_{days}d": 50.0 for days in (1, 7, 30)}
    given = {**usual, **averages, **values}
    return np.array([[given.get(name, 0.0) for name in FEATURES]])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reasons_say_what_a_person_can_check(algorithm):
    model = fitted(algorithm)
    large = payment(amount=512.40, customer_amount_avg_30d=84.0)
    (reasons,) = model.reasons(large, model.score(large))
    assert "amount 512.40 is 6.1 times the customer's 30-day average" in reasons
    assert 1 <= len(reasons) <= 3
    bad = payment(
        **{f"terminal_fraud_share_{days}d": 0.9 for days in (1, 7, 30)},
        **{f"terminal_payments_count_{days}d": 10.0 for days in (1, 7, 30)},
    )
    (reasons,) = model.reasons(bad, model.score(bad), most=1)
    assert len(reasons) == 1
    assert reasons[0].startswith("90 % of this terminal's payments in 1 day were fraud")


def test_the_amount_is_set_against_the_customers_other_payments_of_each_window():
    row = payment(
        amount=90.0,
        **{f"customer_payments_count_{days}d": n for days, n in ((1, 1), (7, 2), (30, 4))},
        **{f"customer_amount_avg_{days}d": n for days, n in ((1, 90), (7, 50), (30, 45))},
    )
    inputs = dict(zip((*FEATURES, *DERIVED), learning._with_derived(row)[0], strict=True))
    others = [inputs[f"amount_over_customer_others_{days}d"] for days in (1, 7, 30)]
    assert others == [1, 9, 3]  # none; one of 10; three of 30 on average
    of_nothing = payment(amount=0.0, **{f"customer_amount_avg_{days}d": 0.0 for days in (1, 7, 30)})
    assert np.isfinite(learning._with_derived(of_nothing)).all()


def test_the_baseline_rule_alerts_on_large_amounts_and_bad_terminals():
    rule = BaselineRule()
    rows = np.vstack(
        [
            payment(),
            payment(amount=220.01),
            payment(amount=220.0),
            payment(terminal_fraud_share_7d=0.6),
        ]
    )
    scores = rule.score(rows)
    assert scores.tolist() == [0.0, 1.0, 0.0, 0.6]
    assert (scores >= rule.alert_threshold).tolist() == [False, True, False, True]
    reasons = rule.reasons(rows, scores)
    assert reasons[1] == ["amount 220.01 is above 220"]
    assert reasons[3][0].startswith("60 % of this terminal's payments in 7 days were fraud")


def test_lightgbm_is_the_champion_unless_the_baseline_was_better_of_late():
    assert learning.recent([]).champion == "lightgbm"
    assert learning.recent([(0.7, 0.6), (None, None)]) == learning.Recent(1, 0.7, 0.6)
    assert learning.recent([(0.5, 0.6), (0.6, 0.6)]).champion == "logistic_regression"
    late = learning.recent([(0.1, 0.9), *[(0.7, 0.6)] * 4])
    assert (late.weeks, late.champion) == (4, "lightgbm")


def test_more_cards_to_look_at_lower_the_score_that_raises_an_alert():
    rows = learning.training_rows(payments(), Week(MONDAY))
    threshold = {
        cards: learning.fit(rows, "logistic_regression", cards).alert_threshold
        for cards in (1, 10, 100)
    }
    assert threshold[1] > threshold[10] > threshold[100]


def backtest() -> pl.DataFrame:
    tested = learning.test_rows(payments(), Week(MONDAY))
    matrix = learning.matrix_of(tested)
    return pl.concat(
        tested.select(
            "customer_id",
            "amount",
            "label",
            algorithm=pl.lit(algorithm),
            transaction_at="as_of_at",
            score=pl.Series(fitted(algorithm).score(matrix)),
        )
        for algorithm in ALGORITHMS
    )


def test_saved_money_grows_with_the_cards_investigated_up_to_all_there_was_to_save():
    rows = backtest().filter(pl.col("algorithm") == "lightgbm")
    saved, total = saved_by_cards(rows, most=2000)
    assert saved[0] == 0
    assert (np.diff(saved) >= 0).all()
    assert saved[-1] == pytest.approx(total)
    assert total == pytest.approx(float(rows.filter("label")["amount"].sum()) / 7)


def test_the_plots_are_pictures():
    scores = pl.DataFrame(
        {"latency_ms": [0.0, 0.8, 1.2, 40.0], "is_alert": [False, True, False, False]}
    )
    for png in (
        draw_precision_recall(backtest()),
        draw_saved_money(backtest(), cards_per_day=100),
        draw_latency(scores),
    ):
        assert png.startswith(b"\x89PNG")


def test_the_parity_table_counts_each_features_mismatches():
    parity = pl.DataFrame(
        {
            "payments_scored_count": [1000, 500],
            "is_night_mismatches_count": [0, 2],
            "mismatches_count": [0, 2],
        }
    )
    table = parity_table(parity)
    assert "| is_night | 1,500 | 2 |" in table
    assert len(table.splitlines()) == 3
