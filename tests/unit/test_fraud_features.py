"""The twelve window features of a payment: SQL against their definition, in generated worlds and on real data."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

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


MODELS = (
    "staging.stg_payments_lake__payments",
    "staging.stg_payments_lake__fraud_labels",
    "staging.stg_payments_stream__payments",
    "staging.stg_payments_stream__fraud_reports",
    "intermediate.int_payments__merged",
    "intermediate.int_fraud_labels__versioned",
    "features.feat_payment__windows",
)
"""What stands between raw payments and their features, in the order in which it is built."""


@pytest.fixture(scope="module")
def models(compiled) -> dict[str, str]:
    """`schema.table` of each of these models to its SQL."""
    return {model: compiled[model] for model in MODELS}


def features(models: dict[str, str], payments: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """What the models make of these payments and versions of labels, in the order of the payments.

    A third of the payments come from the lake, a third from the stream, a third from both. A label
    that became known after exactly seven days comes with the lake's payment where there is one; other
    labels, and corrections of it, come as reports.
    Every tenth payment and report arrives twice, and some reports are of payments nobody knows.
    """
    with duckdb.connect(":memory:") as connection:
        connection.register("payments", payments.to_arrow())
        connection.register("labels", labels.to_arrow())
        connection.execute(f"""
            attach ':memory:' as lake;
            use lake;
            create schema raw;
            create schema staging;
            create schema intermediate;
            create schema features;
            create table came as
                select
                    p.transaction_id, p.customer_id, p.terminal_id,
                    make_timestamp(any_value(p.moment)) as transaction_at,
                    cast(any_value(p.cents) / 100 as decimal(12, 2)) as amount,
                    p.transaction_id % 3 < 2 as is_in_lake,
                    p.transaction_id % 3 > 0 as is_in_stream,
                    bool_or(l.is_fraud) filter (where l.known_at = p.moment + {DELAY}) as is_fraud
                from payments as p left join labels as l on p.transaction_id = l.transaction_id
                group by p.transaction_id, p.customer_id, p.terminal_id;
            create table raw.payments_lake__payments as
                select
                    transaction_id, transaction_at, customer_id, terminal_id, amount, is_fraud,
                    timestamp '2019-01-01' as _loaded_at, 'payments/0/1' as _source_position
                from came, range(2) as twice (again)
                where is_in_lake and (again = 0 or transaction_id % 10 = 0);
            create table raw.payments_stream__payments as
                select
                    transaction_id, transaction_at, customer_id, terminal_id, amount,
                    timestamp '2019-01-01' + to_seconds(again) as _loaded_at, 'payments/0/1' as _source_position
                from came, range(2) as twice (again)
                where is_in_stream and (again = 0 or transaction_id % 10 = 0);
            create table raw.payments_stream__fraud_reports as
                select
                    transaction_id + case when again = 2 then 1000000 else 0 end as transaction_id,
                    l.is_fraud, make_timestamp(l.known_at) as reported_at,
                    timestamp '2019-01-01' + to_seconds(again) as _loaded_at, 'payments/0/1' as _source_position
                from labels as l inner join came using (transaction_id), range(3) as twice (again)
                where not (is_in_lake and l.known_at = epoch_us(transaction_at) + {DELAY})
                    and (again = 0 or transaction_id % 10 = 0)
        """)
        for table, sql in models.items():
            connection.execute(f"create table {table} as {sql}")
        found = connection.execute("from features.feat_payment__windows").to_arrow_table()
    built = pl.DataFrame(found)
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
def test_features_of_generated_payments_are_what_their_definition_says(models, seed):
    payments, labels = world(seed)
    expected = by_definition(payments, labels)
    assert (expected["terminal_fraud_share_1d"] > 0).mean() > 0.1
    assert mismatches(features(models, payments, labels), expected) == dict.fromkeys(FEATURES, 0)


def test_what_happens_or_becomes_known_later_changes_no_earlier_row(models):
    payments, labels = world(seed=9, rows=10_000)
    now = int(payments["moment"].median())
    known = features(models, payments, labels).filter(pl.col("as_of_at").dt.timestamp("us") < now)
    past = payments.filter(pl.col("moment") < now)
    then = labels.filter(
        pl.col("known_at") < now, pl.col("transaction_id").is_in(past["transaction_id"].implode())
    )
    then = then.with_columns(
        superseded_at=pl.when(pl.col("superseded_at") < now).then("superseded_at")
    )
    assert known.height == past.height > 1_000
    assert features(models, past, then).equals(known)


def by_rolling(payments: pl.DataFrame) -> pl.DataFrame:
    """The features as the Fraud Detection Handbook rolls its windows: positions in one order per customer and terminal.

    `payments` are in the order of `moment`, then `transaction_id`; labels (`is_fraud`) come after seven days.
    """
    expected = {}
    moment = payments["moment"].to_numpy() - payments["moment"].min() + 60 * DAY
    for entity, delay, value in (("customer", 0, "cents"), ("terminal", DELAY, "is_fraud")):
        ids = payments[f"{entity}_id"].to_numpy()
        order = np.argsort(ids, kind="stable")
        key = (ids[order] << 44) + moment[order]
        sums = np.concatenate([[0], np.cumsum(payments[value].to_numpy()[order].astype(np.int64))])
        # up to the payment itself, or up to what was paid seven days before
        end = np.searchsorted(key, key - delay, "right") if delay else np.arange(1, len(key) + 1)
        for days in WINDOWS:
            start = np.searchsorted(key, key - delay - days * DAY, "right")
            count, total = end - start, sums[end] - sums[start]
            ratio = total / count / 100 if entity == "customer" else total / np.maximum(count, 1)
            measure = "customer_amount_avg" if entity == "customer" else "terminal_fraud_share"
            for name, values in ((f"{entity}_payments_count", count), (measure, ratio)):
                expected[f"{name}_{days}d"] = np.empty(len(key))
                expected[f"{name}_{days}d"][order] = values
    return pl.DataFrame(expected)


def test_features_of_the_real_payments_are_those_of_rolling_windows(models):
    if not REAL_DATA or not Path(REAL_DATA, "card_payments").is_dir():
        pytest.skip("WATERSHED_TEST_DATA names no folder with card_payments")
    payments = (
        pl.scan_parquet(Path(REAL_DATA, "card_payments", "**", "*.parquet"))
        .select(
            "transaction_id",
            pl.col("transaction_at").dt.timestamp("us").alias("moment"),
            pl.col("customer_id", "terminal_id").cast(pl.Int64),
            (pl.col("amount") * 100).cast(pl.Int64).alias("cents"),
            "is_fraud",
        )
        .sort("moment", "transaction_id")
        .collect()
    )
    labels = payments.select(
        "transaction_id", "is_fraud", known_at="moment", superseded_at=pl.lit(None, pl.Int64)
    ).with_columns(pl.col("known_at") + DELAY)
    built = features(models, payments, labels)
    assert mismatches(built, by_rolling(payments)) == dict.fromkeys(FEATURES, 0)
    assert (built["is_night"] == (payments["moment"] % DAY < 7 * DAY // 24)).all()
    assert (built["is_weekend"] == ((payments["moment"] // DAY + 3) % 7 >= 5)).all()
