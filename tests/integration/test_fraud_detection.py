"""Fraud detection from the lake and the stream to what is known of each payment, on 300 cards and ten weeks."""

from __future__ import annotations

import json
from datetime import timedelta

import polars as pl
import pytest

from orchestration.connectors.event_log import Producer
from orchestration.demo.card_payments import simulate
from tests.integration.small_house import BIN, PAYMENTS, ROOT


@pytest.fixture(scope="module")
def simulated() -> pl.DataFrame:
    return pl.from_arrow(simulate(PAYMENTS))


def rebuild(house, monkeypatch, *tables: str) -> None:
    """Land topics, then build what staging and intermediate make of them."""
    for table in tables:
        house.materialize(f"raw/payments_stream__{table}", monkeypatch)
    built = house.run(
        BIN / "dbt", "build", "--indirect-selection", "cautious", "--select",
        "stg_payments_stream__payments stg_payments_stream__fraud_reports"
        " int_payments__merged int_fraud_labels__versioned",
        cwd=ROOT / "dbt_project",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout


def test_every_payment_of_lake_and_stream_is_there_once_as_it_was_made(house, simulated):
    assert house.first.returncode == 0, house.first.stdout + house.first.stderr
    ((lake, stream),) = house.rows(
        "select (select count(*) from raw.payments_lake__payments),"
        " (select count(*) from raw.payments_stream__payments)"
    )
    assert lake > stream > 1_000
    columns = ["transaction_id", "transaction_at", "customer_id", "terminal_id", "amount"]
    merged = house.rows(
        f"select {', '.join(columns)} from intermediate.int_payments__merged order by 1"
    )
    assert merged == simulated.select(columns).rows()


def test_a_label_is_known_a_week_after_its_payment_from_lake_and_stream_alike(house, simulated):
    labels = house.rows(
        "select transaction_id, is_fraud, known_at, superseded_at"
        " from intermediate.int_fraud_labels__versioned order by 1"
    )
    week = timedelta(days=7)
    # Of the last week's payments nothing is known yet.
    known = simulated.filter(pl.col("transaction_at") < pl.lit(PAYMENTS.ends) - week).select(
        "transaction_id", "is_fraud", pl.col("transaction_at") + week, pl.lit(None)
    )
    assert 0 < len(known) < len(simulated)
    assert labels == known.rows()
    assert sum(is_fraud for _, is_fraud, *_ in labels) > 20


def test_the_end_table_counts_the_payments(house, simulated):
    (line,) = (line for line in house.first.stdout.splitlines() if "card payments" in line)
    assert f"{len(simulated):,}" in line


def test_a_duplicate_counts_once_and_what_is_no_payment_is_set_aside(house, monkeypatch):
    before = house.rows("from intermediate.int_payments__merged order by transaction_id")
    twice, *_ = house.rows(
        "select * from staging.stg_payments_stream__payments order by transaction_id"
    )
    event = {
        "transaction_id": twice[0],
        "transaction_at": twice[1].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "customer_id": twice[2],
        "terminal_id": twice[3],
        "amount": float(twice[4]),
    }
    new = 10**9
    bad = {
        b'{"transaction_id": 1, ': "not JSON",
        json.dumps(event | {"transaction_id": new, "amount": -1}).encode(): "a negative amount",
        json.dumps(event | {"transaction_id": new, "amount": 1e9}).encode(): "an absurd amount",
        json.dumps(event | {"transaction_id": new, "customer_id": None}).encode(): "no customer",
    }
    with Producer(house.stream, "payments") as producer:
        producer.append_batch(
            [json.dumps(event).encode(), *bad, json.dumps(event | {"amount": 1.5}).encode()]
        )
    rebuild(house, monkeypatch, "payments")
    assert house.rows("from intermediate.int_payments__merged order by transaction_id") == before
    set_aside = house.rows("select reason from quarantine.payments_stream__payments order by 1")
    assert len(set_aside) == len(bad)
    assert all(reason for (reason,) in set_aside)


def test_a_correction_is_a_version_from_when_it_was_reported(house, monkeypatch):
    ((transaction, is_fraud, known_at),) = house.rows(
        "select transaction_id, is_fraud, known_at from intermediate.int_fraud_labels__versioned"
        " where transaction_id in (from staging.stg_payments_stream__fraud_reports select transaction_id)"
        " order by 1 limit 1"
    )
    later = known_at + timedelta(days=2)
    report = {
        "transaction_id": transaction,
        "is_fraud": not is_fraud,
        "reported_at": later.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    with Producer(house.stream, "fraud_reports") as producer:
        producer.append(None, json.dumps(report).encode())
        producer.append(None, json.dumps(report).encode())  # comes twice
        producer.append(None, json.dumps(report | {"transaction_id": 10**9}).encode())  # of none
    rebuild(house, monkeypatch, "fraud_reports")
    assert house.rows(
        "select is_fraud, known_at, superseded_at from intermediate.int_fraud_labels__versioned"
        f" where transaction_id = {transaction} order by known_at"
    ) == [(is_fraud, known_at, later), (not is_fraud, later, None)]
    assert house.rows(
        "select count(*) from intermediate.int_fraud_labels__versioned where transaction_id = 1000000000"
    ) == [(0,)]


def test_the_champion_scores_the_stream_and_its_features_are_those_of_the_sql(house, monkeypatch):
    from orchestration.streaming.engine import run
    from orchestration.streaming.fraud_scoring import (
        TOPICS,
        FraudScoring,
        champion_of,
        stream_topic,
    )
    from orchestration.streaming.publisher import open_publisher

    # 28 frauds to learn from are too few to beat the rule; a person may know better.
    ((trained,),) = house.rows(
        "select max_by(model_version, as_of_at) from trained_models.fraud_detection where is_champion"
    )
    promoted = house.watershed("promote", trained, "--reason", "to try it")
    assert promoted.exit_code == 0 or "in force" in promoted.output, promoted.output
    said: list[str] = []
    with (
        open_publisher(stream_topic(house.settings, "payments")) as publisher,
        champion_of(house.settings, said.append) as champion,
    ):
        publisher.create(dict.fromkeys(TOPICS, 1))
        asked = iter(range(200))  # some twenty times a second, and once per batch
        done = run(
            FraudScoring(house.settings, champion),
            publisher,
            stop=lambda: next(asked, None) is None,
            say=said.append,
        )
        version = champion().version
    assert version == trained
    assert done.scored > 1_000
    for table in ("payments", "fraud_reports", "scores"):
        house.materialize(f"raw/payments_stream__{table}", monkeypatch)
    built = house.run(
        BIN / "dbt", "build", "--exclude-resource-type", "unit_test", "--select",
        "+mon_fraud_detection__metrics",
        cwd=ROOT / "dbt_project",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    ((scored, unknown, mismatches),) = house.rows(
        "select sum(payments_scored_count), sum(payments_unknown_count), sum(mismatches_count)"
        " from monitoring.mon_fraud_detection__parity"
    )
    assert (scored, unknown, mismatches) == (done.scored, 0, 0)
    timely = house.rows(
        "select sum(value > 0 and target = 10 and is_met = (value <= 10))"
        " from monitoring.mon_fraud_detection__metrics where metric = 'score_latency_p99_ms'"
    )
    assert timely[0][0] > 0
    _, checks = house.materialize("monitoring/fraud_stream_report", monkeypatch)
    assert "scores_are_timely" in checks
    ((predictions, versions),) = house.rows(
        "select count(*), any_value(model_version) from predictions.payment_scores"
    )
    assert (predictions, versions) == (scored, version)
