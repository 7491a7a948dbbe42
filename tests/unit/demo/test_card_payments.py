"""The simulated card payments: the published method holds, a seed is a world, a second fill adds nothing."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from orchestration.connectors import event_log
from orchestration.demo import card_payments, events
from orchestration.demo.card_payments import World, fill, simulate
from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect

SMALL = World(customers=300, terminals=600, days=60)


def frame(world: World) -> pl.DataFrame:
    return pl.from_arrow(simulate(world)).with_columns(
        day=(pl.col("transaction_at").dt.date() - world.first_date).dt.total_days()
    )


@pytest.fixture(scope="module")
def payments() -> pl.DataFrame:
    """A world in which terminals and customers are compromised in the published proportions."""
    return frame(World(customers=2_500, terminals=5_000, days=60))


def test_a_seed_is_a_world():
    assert simulate(SMALL).equals(simulate(SMALL))
    assert not simulate(SMALL).equals(
        simulate(World(customers=300, terminals=600, days=60, seed=1))
    )


def test_payments_are_numbered_in_the_order_of_their_time(payments):
    assert payments["transaction_id"].to_list() == list(range(len(payments)))
    assert payments["transaction_at"].is_sorted()
    assert payments["transaction_at"].min() >= datetime(2018, 4, 23)
    assert payments["transaction_at"].max() < datetime(2018, 4, 23) + timedelta(days=60)
    assert payments["amount"].dtype == pl.Decimal(12, 2)
    assert payments["amount"].min() >= 0


def test_a_customer_pays_twice_a_day_about_noon_on_average(payments):
    # 3 % of a normal distribution about noon with 20,000 s lies outside the day.
    assert len(payments) / (2_500 * 60) == pytest.approx(2 * 0.97, rel=0.05)
    seconds = payments["transaction_at"].dt.time().cast(pl.Int64) // 10**9
    assert seconds.mean() == pytest.approx(43_200, rel=0.01)
    assert payments.filter(pl.col("fraud_scenario") == 0)["amount"].cast(float).mean() == (
        pytest.approx(53, rel=0.05)
    )


def test_a_customer_pays_at_the_few_terminals_near(payments):
    # 5,000 terminals on a square of 100 x 100: 39 within a radius of 5, fewer at the borders.
    per_customer = payments.group_by("customer_id").agg(pl.col("terminal_id").n_unique())
    assert 20 < per_customer["terminal_id"].mean() < 40
    assert per_customer["terminal_id"].max() < 70


def test_every_payment_above_220_is_fraud_and_no_other_outside_a_compromise(payments):
    assert payments.filter(pl.col("amount") > Decimal(220))["is_fraud"].all()
    alone = payments.filter(pl.col("fraud_scenario") == 1)
    assert len(alone)
    assert (alone["amount"] > Decimal(220)).all()
    assert (payments["is_fraud"] == (payments["fraud_scenario"] > 0)).all()


def test_a_compromised_terminal_has_nothing_but_fraud_for_28_days(payments):
    fraud = payments.filter(pl.col("fraud_scenario") == 2)
    windows = fraud.group_by("terminal_id").agg(first=pl.col("day").min(), last=pl.col("day").max())
    # 1 a day of 5,000; one that is compromised again within 28 days has a longer window.
    assert 40 < len(windows) <= 60
    spans = windows["last"] - windows["first"] + 1
    assert (spans <= 28).mean() > 0.9
    within = payments.join(windows, on="terminal_id").filter(
        pl.col("day").is_between("first", "last"), pl.col("last") - pl.col("first") < 28
    )
    assert len(within) > 500
    assert within["is_fraud"].all()


def test_a_compromised_customer_has_a_third_of_fraud_of_five_times_the_amount_for_14_days(payments):
    fraud = payments.filter(pl.col("fraud_scenario") == 3)
    windows = fraud.group_by("customer_id").agg(
        first=pl.col("day").min(), last=pl.col("day").max(), frauds=pl.len()
    )
    assert 60 < len(windows) <= 90  # 1.5 a day of 2,500, some with too few payments for a third
    single = windows.filter(pl.col("last") - pl.col("first") < 14)
    assert len(single) / len(windows) > 0.9
    usual = (
        payments.filter(pl.col("fraud_scenario") == 0)
        .group_by("customer_id")
        .agg(usual=pl.col("amount").cast(float).mean())
    )
    ratio = fraud.join(usual, on="customer_id").select(
        pl.col("amount").cast(float) / pl.col("usual")
    )
    assert ratio.to_series().mean() == pytest.approx(5, rel=0.1)


def test_a_third_of_a_compromised_customers_payments_is_fraud(monkeypatch):
    """All customers are compromised on the first day, so that the windows are known."""
    monkeypatch.setattr(card_payments, "CUSTOMERS_PER_DAY", 1.0)
    monkeypatch.setattr(card_payments, "TERMINALS_PER_DAY", 0.0)
    monkeypatch.setattr(card_payments, "LARGE_AMOUNT", 10**6)
    world = World(customers=200, terminals=2_000, days=1)
    of_a_customer = frame(world).group_by("customer_id").agg(pl.len(), pl.col("is_fraud").sum())
    assert (of_a_customer["is_fraud"] == of_a_customer["len"] // 3).all()
    assert of_a_customer["is_fraud"].sum() > 20


def test_the_share_of_fraud_is_the_published_one(payments):
    """0.84 % over half a year; the first weeks have less, when few are compromised yet."""
    assert 0.006 < payments["is_fraud"].mean() < 0.012
    assert 0.003 < frame(World())["is_fraud"].mean() < 0.012


def read_topic(folder, topic):
    reader = event_log.Reader(folder, topic, 0, 0)
    events = []
    while slices := reader.read():
        events += event_log.events_of(topic, slices)
    reader.close()
    return events


def test_lake_and_stream_share_the_payments_and_reports_follow_a_week_later(tmp_path):
    lake, stream = tmp_path / "lake", tmp_path / "stream"
    added = fill(lake, stream, SMALL)
    everything = frame(SMALL)
    past = pl.read_parquet(lake / "**" / "*.parquet", hive_partitioning=False)
    assert past.columns == [
        "transaction_id", "transaction_at", "customer_id", "terminal_id", "amount", "is_fraud"
    ]  # fmt: skip
    events = [json.loads(e.value, parse_float=Decimal) for e in read_topic(stream, "payments")]
    assert added["lake"] == len(past)
    assert added["payments"] == len(events)
    assert sorted(past["transaction_id"].to_list()) + [e["transaction_id"] for e in events] == list(
        range(len(everything))
    )
    streamed = everything[len(past) :]
    assert streamed["transaction_at"].min().date() == SMALL.streamed_from == date(2018, 6, 8)
    for field in ("customer_id", "terminal_id", "amount"):
        assert [e[field] for e in events] == streamed[field].to_list()
    moments = [datetime.strptime(e["transaction_at"], "%Y-%m-%dT%H:%M:%SZ") for e in events]
    assert moments == streamed["transaction_at"].to_list()
    assert all("is_fraud" not in event for event in events)

    reports = [json.loads(e.value) for e in read_topic(stream, "fraud_reports")]
    assert added["fraud_reports"] == len(reports)
    known = streamed.filter(pl.col("day") < SMALL.days - 7)
    assert [r["transaction_id"] for r in reports] == known["transaction_id"].to_list()
    assert [r["is_fraud"] for r in reports] == known["is_fraud"].to_list()
    when = [datetime.strptime(r["reported_at"], "%Y-%m-%dT%H:%M:%SZ") for r in reports]
    assert when == (known["transaction_at"] + timedelta(days=7)).to_list()


def test_events_carry_the_time_of_the_event_and_the_customer(tmp_path):
    fill(tmp_path / "lake", tmp_path / "stream", SMALL)
    first = read_topic(tmp_path / "stream", "payments")[0]
    value = json.loads(first.value)
    assert first.key == str(value["customer_id"]).encode()
    at = datetime.fromisoformat(value["transaction_at"])
    assert first.timestamp == int(at.timestamp() * 1000)


def test_a_second_fill_adds_nothing_and_a_broken_off_one_is_completed(tmp_path, monkeypatch):
    lake, stream, whole = tmp_path / "lake", tmp_path / "stream", tmp_path / "whole"
    expected = fill(whole / "lake", whole / "stream", SMALL)
    monkeypatch.setattr(events, "EVENTS_AT_ONCE", 1_000)

    def break_off(message):
        if "2,000" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(lake, stream, SMALL, progress=break_off)
    rest = fill(lake, stream, SMALL)
    assert 0 < rest["payments"] < expected["payments"]
    for topic in ("payments", "fraud_reports"):
        assert read_topic(stream, topic) == read_topic(whole / "stream", topic)
    assert fill(lake, stream, SMALL) == {"lake": 0, "payments": 0, "fraud_reports": 0}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "lake").write_text("a file where the folder should be")
    with pytest.raises(MendableError, match="lake"):
        fill(tmp_path / "lake", tmp_path / "stream", SMALL)


def test_whole_cents_become_decimals_of_either_size():
    cents = np.array([0, 1, 12_34, 99_999_999_99])
    assert card_payments._decimals(cents).to_pylist() == [
        Decimal("0.00"), Decimal("0.01"), Decimal("12.34"), Decimal("99999999.99")
    ]  # fmt: skip


def test_a_companys_own_lake_does_not_mix_with_simulated_payments(settings, tmp_path):
    card_payments.require_unmixed(settings)  # no warehouse yet
    own = load_settings(payments_lake_url=str(tmp_path / "own"))
    card_payments.require_unmixed(own)
    with connect(settings) as connection:
        connection.execute("create schema landing")
        card_payments.require_unmixed(own)  # nothing landed
        connection.execute(
            "create table landing.positions as select 'payments_lake__payments' as table_name,"
            """ '{"files": {"month=2018-05/part-0.parquet": [1, 2, "a"]}}' as source_position"""
        )
        card_payments.require_unmixed(own)  # its own
        connection.execute(
            "update landing.positions set source_position ="
            """ '{"files": {"month=2018-05/simulated.parquet": [1, 2, "a"]}}'"""
        )
    card_payments.require_unmixed(settings)  # the demo again
    with pytest.raises(MendableError, match="WATERSHED_DATA_DIR"):
        card_payments.require_unmixed(own)
