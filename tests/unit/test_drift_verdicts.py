"""The drift tests: the SQL is the formula that the benchmark measures, stable worlds are quiet, a shift is found."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

from benchmarks.drift_false_alarms import autoregressive, student_t, suite, verdicts

FEATURES = ["amount", "is_night"] + [
    f"{measure}_{days}d"
    for measure in (
        "customer_payments_count",
        "customer_amount_avg",
        "terminal_payments_count",
        "terminal_fraud_share",
    )
    for days in (1, 7, 30)
]
CURRENT, GAP, REFERENCE, WARM_UP = 14, 7, 42, 37


@pytest.fixture(scope="module")
def model(compiled) -> str:
    """The SQL of fraud detection's drift."""
    return compiled["monitoring.mon_fraud_detection__drift"]


def drift(model: str, payments: pl.DataFrame) -> pl.DataFrame:
    """What the model says of these features, nothing being scored or labelled yet."""
    with duckdb.connect(":memory:") as connection:
        connection.register("payments", payments.to_arrow())
        connection.execute("""
            attach ':memory:' as lake;
            use lake;
            create schema features; create schema predictions; create schema trained_models;
            create table features.feat_payment__windows as from payments;
            create table predictions.payment_scores
                (transaction_at timestamp, score double, is_alert boolean);
            create table predictions.fraud_backtest (
                as_of_at timestamp, algorithm varchar, transaction_at timestamp, score double, label boolean
            );
            create table trained_models.fraud_detection
                (as_of_at timestamp, algorithm varchar, is_champion boolean);
        """)
        return pl.DataFrame(connection.execute(model).to_arrow_table())


def world(phi: float, *, rows: int = 40, seed: int = 1) -> tuple[pl.DataFrame, np.ndarray]:
    """Payments of as many days as one comparison needs: (features, days) common to a day's rows, and noise."""
    rng = np.random.default_rng(seed)
    days = WARM_UP + REFERENCE + GAP + CURRENT
    daily = autoregressive(rng, len(FEATURES), days, phi, skewed=False)
    values = 5 + daily[:, :, None] + rng.standard_normal((len(FEATURES), days, rows))
    at = np.datetime64("2018-01-01T12", "us") + np.repeat(np.arange(days), rows) * np.timedelta64(
        1, "D"
    )
    frame = pl.DataFrame(
        {"as_of_at": at, **dict(zip(FEATURES, values.reshape(len(FEATURES), -1), strict=True))}
    )
    return frame, values


def windows(daily: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return daily[:, WARM_UP : WARM_UP + REFERENCE], daily[:, -CURRENT:]


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_sql_is_the_formula_whose_false_alarms_are_measured(model, phi):
    payments, values = world(phi)
    payments = payments.with_columns(  # of every third payment the first feature is missing
        pl.when(pl.int_range(pl.len()) % 3 > 0).then("amount").alias("amount")
    )
    values = values[1:]
    found = drift(model, payments)
    found = found.filter(pl.col("as_of_at") == found["as_of_at"].max())
    assert found.height == 3 * len(FEATURES)
    missing = found.filter(statistic="missing", feature="amount").row(0, named=True)
    assert missing["current_value"] == pytest.approx(1 / 3, abs=0.02)
    daily = [values.mean(axis=2), values.std(axis=2), np.zeros(values.shape[:2])]
    both, missing_share = [windows(one) for one in daily[:2]], [windows(daily[2])]
    expected = verdicts(both, found.height) + verdicts(missing_share, found.height)
    for name, one in zip(("mean", "spread", "missing"), expected, strict=True):
        rows = {row["feature"]: row for row in found.filter(statistic=name).to_dicts()}
        for place, feature in enumerate(FEATURES[1:]):
            row = rows[feature]
            assert row["difference"] == pytest.approx(one["difference"][place], rel=1e-9, abs=1e-12)
            n = one["n_effective"][place]
            assert (row["n_effective"] is None) == np.isnan(n)
            if not np.isnan(n):
                assert row["n_effective"] == pytest.approx(n, rel=1e-9)
            if n >= 32:
                limit = max(one["significant"][place], 0.1 * row["scale"])
                assert row["threshold"] == pytest.approx(limit, rel=1e-9)
            else:
                assert (row["threshold"], row["verdict"]) == (None, "not_enough_data")


def test_a_shift_and_a_wider_spread_and_missing_values_are_found_and_nothing_else(model):
    rng = np.random.default_rng(3)
    days, rows = WARM_UP + REFERENCE + GAP + CURRENT, 400
    values = rng.standard_normal((len(FEATURES), days, rows))
    values[0, -CURRENT:] += 0.5
    values[1, -CURRENT:] *= 1.5
    at = np.datetime64("2018-01-01T12", "us") + np.repeat(np.arange(days), rows) * np.timedelta64(
        1, "D"
    )
    payments = pl.DataFrame(
        {"as_of_at": at, **dict(zip(FEATURES, values.reshape(len(FEATURES), -1), strict=True))}
    )
    newest = payments["as_of_at"].max() - pl.duration(days=CURRENT - 1)
    third = pl.int_range(pl.len()) % 3 == 0
    payments = payments.with_columns(
        pl.when(~third | (pl.col("as_of_at") < newest)).then(FEATURES[2]).alias(FEATURES[2])
    )
    found = drift(model, payments)
    newest_only = found.filter(pl.col("as_of_at") == found["as_of_at"].max())
    drifted = newest_only.filter("is_drifted").select("feature", "statistic").rows()
    assert set(drifted) == {
        (FEATURES[0], "mean"),
        (FEATURES[1], "spread"),
        (FEATURES[2], "missing"),
    }
    assert set(newest_only.filter(~pl.col("is_drifted"))["verdict"]) <= {
        "stable",
        "not_enough_data",
    }


def test_a_few_days_or_slow_series_are_not_enough_data(model):
    payments, _ = world(0.98)
    found = drift(model, payments)
    assert found.filter(pl.col("is_drifted")).rows() == []
    payments, _ = world(0.0)
    short = payments.filter(pl.col("as_of_at") > payments["as_of_at"].min() + pl.duration(days=60))
    assert set(drift(model, short)["verdict"]) <= {"not_enough_data"}


def test_few_stable_suites_raise_an_alarm_and_half_a_standard_deviation_is_seen():
    rng = np.random.default_rng(11)
    for phi, current in ((0.0, 14), (0.0, 250), (0.9, 100), (0.98, 500)):
        found = [suite(rng, current, phi, skewed=False) for _ in range(20)]
        assert sum(one["false alarm"] for one in found) <= 2
    found = [suite(rng, 250, 0.0, skewed=False) for _ in range(10)]
    assert np.mean([one["power"] for one in found]) >= 0.9


def test_the_quantile_of_students_t_is_that_of_scipy():
    from scipy.stats import t

    for tail in (0.005, 1e-4, 1e-5):
        dof = np.array([8.0, 16.0, 50.0, 1e4])
        assert student_t(tail, dof) == pytest.approx(t.isf(tail, dof), rel=0.03)
