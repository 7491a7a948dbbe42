"""The twelve window features of a payment: SQL against their definition, in generated worlds and on real data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = os.environ.get("WATERSHED_TEST_DATA")
DAY = 86_400_000_000  # microseconds
DELAY = 7 * DAY
WINDOWS = (1, 7, 30)
MEASURES = (
    "customer_payments_count",
    "customer_amount_avg",
    "terminal_payments_count",
    "terminal_fraud_share",
)
FEATURES = [f"{measure}_{days}d" for measure in MEASURES for days in WINDOWS]
FOREVER = np.iinfo(np.int64).max


@pytest.fixture(scope="module")
def model_sql(tmp_path_factory) -> str:
    """The model as dbt compiles it."""
    folder = tmp_path_factory.mktemp("compiled")
    model = "models/features/fraud_detection/feat_payment__windows.sql"
    done = subprocess.run(
        [Path(sys.executable).parent / "dbt", "compile", "--quiet", "--target-path", folder]
        + ["--select", Path(model).stem],
        cwd=ROOT / "dbt_project",
        env={**os.environ, "WATERSHED_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "compiled" / "watershed" / model).read_text()


def features(sql: str, payments: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """What the model makes of these payments and versions of labels, in the order of the payments."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("attach ':memory:' as lake; use lake; create schema intermediate")
        connection.register("given_payments", payments.to_arrow())
        connection.register("given_labels", labels.to_arrow())
        connection.execute(
            "create table intermediate.int_payments__merged as select transaction_id, customer_id, terminal_id,"
            " make_timestamp(moment) as transaction_at, cast(cents / 100 as decimal(12, 2)) as amount"
            " from given_payments"
        )
        connection.execute(
            "create table intermediate.int_fraud_labels__versioned as select transaction_id, customer_id,"
            " terminal_id, make_timestamp(moment) as transaction_at, is_fraud, make_timestamp(known_at) as known_at,"
            " make_timestamp(superseded_at) as superseded_at"
            " from given_labels inner join given_payments using (transaction_id)"
        )
        built = pl.DataFrame(connection.execute(sql).to_arrow_table())
    assert built["transaction_id"].n_unique() == built.height == payments.height
    return payments.select("transaction_id").join(
        built, on="transaction_id", how="left", maintain_order="left"
    )


def world(seed: int, rows: int = 30_000) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Payments (`moment` in microseconds) and versions of labels, full of what goes wrong.

    Times lie on a grid of six hours, some a microsecond off it: so many payments are made at the same
    instant, and many are exactly N days apart. Identifiers are not in the order of time, as when
    payments arrive late. A few terminals and customers have most payments. Labels come on time, early,
    late or never; up to five versions, at times equal to the one before, become known one by one.
    """
    rng = np.random.default_rng(seed)
    entities = rows // 40
    at = rng.integers(0, 60 * 4, rows) * (DAY // 4) + rng.choice(
        [-1, 0, 1], rows, p=[0.1, 0.8, 0.1]
    )
    skewed = np.minimum(rng.zipf(1.3, rows) - 1, rng.integers(0, entities, rows))
    payments = pl.DataFrame(
        {
            "transaction_id": rng.permutation(rows * 3)[:rows],
            "moment": at + 17_000 * DAY,
            "customer_id": rng.integers(0, entities, rows),
            "terminal_id": np.where(
                rng.random(rows) < 0.1, skewed % 20, rng.integers(0, entities, rows)
            ),
            "cents": rng.integers(0, 100_000, rows) * rng.choice([1, 1, 1, 1_000], rows),
        }
    )
    versions = rng.choice(6, rows, p=[0.15, 0.5, 0.2, 0.1, 0.03, 0.02])  # 0: no label
    labels = payments.select("transaction_id", "moment")[np.repeat(np.arange(rows), versions)]
    lag = rng.choice([0, 1, 6, 7, 8, 9, 14, 37, 38, 60], labels.height) * DAY
    known_at = labels["moment"].to_numpy() + np.where(rng.random(labels.height) < 0.5, DELAY, lag)
    labels = labels.with_columns(
        known_at=known_at + rng.choice([0, 0, -1, 1, DAY // 4], labels.height),
        is_fraud=rng.random(labels.height) < 0.5,
    ).unique(["transaction_id", "known_at"], keep="first", maintain_order=True)
    labels = labels.sort("transaction_id", "known_at").with_columns(
        superseded_at=pl.col("known_at").shift(-1).over("transaction_id")
    )
    return payments, labels.drop("moment")


def by_definition(payments: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The features as their definition reads: of every payment (a row), which payments and labels (columns) count."""
    expected = {name: np.full(payments.height, np.nan) for name in FEATURES}
    payments = payments.with_row_index("place")
    for _, mine in payments.group_by("customer_id"):
        at, key = mine["moment"].to_numpy(), mine["transaction_id"].to_numpy()
        age = at[:, None] - at[None, :]
        passed = (age > 0) | ((age == 0) & (key[None, :] <= key[:, None]))
        for days in WINDOWS:
            counts = passed & (age < days * DAY)
            cents = (counts * mine["cents"].to_numpy()).sum(axis=1)
            count = counts.sum(axis=1)
            expected[f"customer_payments_count_{days}d"][mine["place"]] = count
            expected[f"customer_amount_avg_{days}d"][mine["place"]] = cents / count / 100
    versions = labels.join(payments, on="transaction_id").partition_by("terminal_id", as_dict=True)
    for terminal, mine in payments.group_by("terminal_id"):
        at = mine["moment"].to_numpy()
        age = at[:, None] - at[None, :] - DELAY
        theirs = versions.get(terminal, labels.join(payments, on="transaction_id").head(0))
        theirs = theirs.filter("is_fraud")
        labelled_age = at[:, None] - theirs["moment"].to_numpy()[None, :] - DELAY
        in_force = (theirs["known_at"].to_numpy() <= at[:, None]) & (
            at[:, None] < theirs["superseded_at"].fill_null(FOREVER).to_numpy()
        )
        for days in WINDOWS:
            count = ((age >= 0) & (age < days * DAY)).sum(axis=1)
            frauds = (in_force & (labelled_age >= 0) & (labelled_age < days * DAY)).sum(axis=1)
            expected[f"terminal_payments_count_{days}d"][mine["place"]] = count
            expected[f"terminal_fraud_share_{days}d"][mine["place"]] = frauds / np.maximum(count, 1)
    return pl.DataFrame(expected)


def mismatches(built: pl.DataFrame, expected: pl.DataFrame) -> dict[str, int]:
    """Feature to the number of rows in which the two are not the same number, bit for bit."""
    return {
        name: int((built[name].cast(pl.Float64) != expected[name]).fill_null(True).sum())
        for name in FEATURES
    }


@pytest.mark.parametrize("seed", range(4))
def test_features_of_generated_payments_are_what_their_definition_says(model_sql, seed):
    payments, labels = world(seed)
    expected = by_definition(payments, labels)
    assert (expected["terminal_fraud_share_1d"] > 0).mean() > 0.1
    assert mismatches(features(model_sql, payments, labels), expected) == dict.fromkeys(FEATURES, 0)


def test_what_happens_or_becomes_known_later_changes_no_earlier_row(model_sql):
    payments, labels = world(seed=9, rows=10_000)
    now = int(payments["moment"].median())
    known = features(model_sql, payments, labels).filter(
        pl.col("as_of_at").dt.timestamp("us") < now
    )
    past = payments.filter(pl.col("moment") < now)
    then = labels.filter(
        pl.col("known_at") < now, pl.col("transaction_id").is_in(past["transaction_id"].implode())
    )
    then = then.with_columns(
        superseded_at=pl.when(pl.col("superseded_at") < now).then("superseded_at")
    )
    assert known.height == past.height > 1_000
    assert features(model_sql, past, then).equals(known)
