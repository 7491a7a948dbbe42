"""The scorer over a stream on disk: what it says, what it sets aside, and that a restart changes nothing."""

from __future__ import annotations

import json
import random
from datetime import timedelta

import pytest

from orchestration.streaming.events import microseconds
from orchestration.streaming.payment_windows import Payment
from tests.unit.streaming.fraud_house import BEGIN, Linear, Payments, history, payment, report
from tests.unit.streaming.test_payment_windows import oracle


@pytest.fixture
def stream(settings):
    return Payments(settings)


def expected(events):
    """The features of every payment by the oracle, from all that ever came."""
    from datetime import datetime

    def at(text):
        return microseconds(datetime.fromisoformat(text))

    payments = {}
    for topic, e in events:
        if topic == "payments":
            made = Payment(
                e["transaction_id"], at(e["transaction_at"]), e["customer_id"], e["terminal_id"],
                round(e["amount"] * 100),
            )  # fmt: skip
            payments.setdefault(made.transaction_id, made)
    labels = [
        (e["transaction_id"], e["is_fraud"], at(e["reported_at"]))
        for topic, e in events
        if topic == "fraud_reports"
    ]
    return {n: oracle(p, payments.values(), labels) for n, p in payments.items()}


def features(scores):
    return {number: tuple(score.values())[4:19] for number, score in scores.items()}


def test_every_payment_gets_its_score_and_a_high_one_an_alert(stream):
    events = history(1, 300)
    stream.put(events)
    status = stream.score()
    scores = stream.last_scores()
    assert features(scores) == expected(events)
    assert status.scored == 300
    assert status.set_aside["duplicate"] > 0
    assert status.corrected > 0
    first = [s for s in stream.read("scores") if s["revision"] == 0]
    alerts = {a["alert_id"]: a for a in stream.read("alerts")}
    assert set(alerts) == {s["payment_position"] for s in first if s["is_alert"]}
    assert 0 < len(alerts) < 300
    assert all(a["reasons"] for a in alerts.values())
    assert all(s["is_alert"] == (s["score"] >= Linear.alert_threshold) for s in first)


@pytest.mark.parametrize("seed", range(6))
def test_a_restart_at_any_place_with_landing_behind_or_ahead_changes_no_score(stream, seed):
    draw, events = random.Random(seed), history(seed, 250)
    cuts = sorted(draw.sample(range(len(events)), 3))
    for start, stop in zip([0, *cuts], [*cuts, len(events)], strict=True):
        stream.put(events[start:stop])
        if draw.random() < 0.5:
            stream.land("payments", "fraud_reports")  # ahead of the scorer
        if draw.random() < 0.7:
            stream.score()
        if draw.random() < 0.5:
            stream.land()
    stream.score()
    assert features(stream.last_scores()) == expected(events)
    decided, alerts = stream.decisions()
    assert set(decided.values()) == {1}
    assert set(alerts.values()) <= {1}
    stream.land()
    again = stream.score()
    assert (again.scored, again.corrected) == (0, 0)


POISON = {
    "malformed JSON": b'{"transaction_id": 1',
    "missing amount": json.dumps({k: v for k, v in payment(1, BEGIN).items() if k != "amount"}),
    "unfit customer_id": json.dumps(payment(1, BEGIN, customer=None)),
    "unfit amount": json.dumps(payment(1, BEGIN, amount=-1)),
    "unfit terminal_id": json.dumps(payment(1, BEGIN, terminal=10**30)),
    "unfit transaction_at": json.dumps(payment(1, "yesterday")),
    "time of another century": json.dumps(payment(1, "1918-05-01T00:00:00Z")),
    "unfit object": b"[1, 2]",
    "too large": b'{"transaction_id": ' + b" " * (10 << 20) + b"1}",
    "duplicate": json.dumps(payment(0, BEGIN)),
    "more than 7 days late": json.dumps(payment(1, BEGIN - timedelta(days=7, seconds=1))),
    "clock in the future": json.dumps(payment(1, BEGIN + timedelta(days=1, seconds=1))),
}


@pytest.mark.parametrize("reason", POISON)
def test_what_is_not_a_payment_is_set_aside_with_its_reason_and_the_next_one_is_scored(
    stream, reason
):
    poison = POISON[reason]
    poison = poison if isinstance(poison, bytes) else poison.encode()
    stream.put([("payments", payment(0, BEGIN)), ("payments", poison)])
    stream.put([("payments", payment(2, BEGIN + timedelta(hours=1)))])
    stream.put([("fraud_reports", b"{}"), ("fraud_reports", report(0, BEGIN))])
    status = stream.score()
    assert dict(status.set_aside) == {reason: 1, "report: missing transaction_id": 1}
    assert list(stream.last_scores()) == [0, 2]


def test_amounts_of_three_decimals_or_a_million_are_no_payments(stream):
    for number, amount in enumerate((1.234, 1_000_000, 999_999.99, "12.30")):
        stream.put([("payments", payment(number, BEGIN, amount=amount))])
    assert stream.score().set_aside["unfit amount"] == 2
    assert [s["amount"] for s in stream.last_scores().values()] == [999_999.99, 12.3]


def test_after_a_silence_of_days_time_moves_on(stream):
    later = BEGIN + timedelta(days=20)
    stream.put([("payments", payment(0, BEGIN))])
    moved = [
        ("payments", payment(n, later + timedelta(minutes=n), terminal=n % 3)) for n in range(1, 21)
    ]
    stream.put([*moved[:2], ("payments", payment(21, BEGIN)), *moved[2:]])
    status = stream.score()
    assert not status.set_aside
    assert sorted(stream.last_scores()) == list(range(22))


def test_one_clock_in_the_future_does_not_stop_a_restarted_scorer(stream):
    stream.put([("payments", payment(n, BEGIN + timedelta(hours=n))) for n in range(50)])
    stream.put([("payments", payment(99, BEGIN + timedelta(days=900)))])
    stream.put([("payments", payment(50, BEGIN + timedelta(hours=50)))])
    stream.score()
    stream.land()
    stream.put([("payments", payment(51, BEGIN + timedelta(hours=51)))])
    stream.score()
    scores = stream.last_scores()
    assert sorted(scores) == list(range(52))
    assert scores[51]["customer_payments_count_30d"] == 52
