"""The weekly training writes both tables, trains only what is new, and does without a week to train."""

from __future__ import annotations

from datetime import datetime, timedelta

import dagster as dg  # noqa: TID251
import duckdb
import numpy as np
import polars as pl
import pytest

from orchestration.build import prepare_manifest
from orchestration.learning.fraud_detection import FEATURES
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame, replace_part

FIRST = datetime(2018, 4, 2)  # a Monday
DAYS = 63


def labelled_payments() -> pl.DataFrame:
    rng = np.random.default_rng(5)
    rows = 200 * DAYS
    amount = rng.gamma(2, 30, rows).round(2)
    frame = pl.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "as_of_at": [FIRST + timedelta(minutes=7.2 * i) for i in range(rows)],
            "customer_id": rng.integers(0, 2000, rows),
            "amount": amount,
            **{name: rng.random(rows) < 0.3 for name in FEATURES[1:3]},
            **{name: rng.integers(1, 30, rows) for name in FEATURES[3:6]},
            **{name: rng.gamma(9, 7, rows) for name in FEATURES[6:9]},
            **{name: rng.integers(0, 40, rows) for name in FEATURES[9:12]},
            **{name: rng.random(rows) for name in FEATURES[12:]},
            "label": amount > 220,
        }
    )
    return frame.with_columns(
        pl.col("amount").cast(pl.Decimal(12, 2)),
        label_known_at=pl.col("as_of_at") + timedelta(days=7),
    )


def write(frame: pl.DataFrame) -> None:
    with connect(load_settings()) as connection:
        connection.execute("drop table if exists training_sets.train_fraud_detection")
        replace_part(
            connection, load_settings(), {"training_sets.train_fraud_detection": frame},
            where="transaction_id", equals=-1,
        )  # fmt: skip
        investigate(connection, 100)


def investigate(connection: duckdb.DuckDBPyConnection, *cards_per_day: int) -> None:
    connection.execute("create schema if not exists seeds")
    connection.execute("create or replace table seeds.fraud_investigation (cards_per_day bigint)")
    connection.executemany(
        "insert into seeds.fraud_investigation values (?)", [[n] for n in cards_per_day]
    )


def build() -> tuple[int, pl.DataFrame, pl.DataFrame]:
    """Models trained now, and both tables."""
    from orchestration.defs.trained_models.fraud_detection import MODEL, train_fraud_detection

    result = dg.materialize([train_fraud_detection])
    checks = result.get_asset_check_evaluations()
    assert {check.check_name for check in checks if check.passed} >= {
        "training_frame_matches_contract",
        "matches_contract",
    }
    events = result.asset_materializations_for_node("train_fraud_detection")
    trained = next(e for e in events if e.asset_key == MODEL).metadata["models_trained_now"].value
    with connect(load_settings(), read_only=True) as connection:
        models = read_frame(connection, "from trained_models.fraud_detection order by all")
        backtest = read_frame(connection, "from predictions.fraud_backtest")
    return trained, models, backtest


@pytest.fixture(autouse=True)
def _house(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERSHED_DATA_DIR", str(tmp_path))
    prepare_manifest()


def test_a_week_is_trained_once_and_again_only_when_its_rows_change():
    frame = labelled_payments()
    write(frame)
    trained, models, backtest = build()
    assert trained == models.height == 6
    # the newest week has its labels for training, and nothing to test on yet
    newest = models.filter(pl.col("as_of_at") == models["as_of_at"].max())
    assert newest["as_of_at"][0] == FIRST + timedelta(days=DAYS + 7)
    assert newest["average_precision"].null_count() == 2
    assert models.filter("is_champion")["as_of_at"].to_list() == sorted(set(models["as_of_at"]))
    assert backtest["as_of_at"].max() < newest["as_of_at"][0]

    trained, again, _ = build()
    assert trained == 0
    assert again.equals(models)

    changed = pl.col("transaction_id") == frame.height - 10
    write(frame.with_columns(label=pl.when(changed).then(~pl.col("label")).otherwise("label")))
    trained, changed_models, _ = build()
    assert trained == 2  # the last training week; the week that is tested on it keeps its models
    assert set(changed_models["model_version"]) & set(models["model_version"])

    with connect(load_settings()) as connection:
        investigate(connection, 10)
    trained, other, _ = build()
    assert trained == changed_models.height
    assert set(other["capacity_per_day"]) == {10}
    assert (other["alert_threshold"] >= changed_models["alert_threshold"]).all()

    write(frame.head(0))
    trained, none, backtest = build()
    assert (trained, none.height, backtest.height) == (0, 0, 0)
