"""The windows against a brute-force oracle that reads the definition aloud: shuffled, late, tied, corrected."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from orchestration.streaming.payment_windows import (
    DAY,
    DELAY,
    LATENESS,
    LENGTHS,
    RETENTION,
    Payment,
    PaymentWindows,
)

SUNDAY = 1_533_427_200_000_000  # 2018-08-05T00:00:00Z
STEPS = (DAY, 7 * DAY, 30 * DAY, DELAY, DELAY + DAY, DELAY + 7 * DAY, DELAY + 30 * DAY)


def oracle(payment, payments, labels):
    """The features of one payment, from all payments and all (transaction_id, is_fraud, known_at)."""
    at, number = payment.at, payment.transaction_id
    known = {}
    for other, is_fraud, known_at in labels:
        if known_at <= at and known_at >= known.get(other, (0, False))[0]:
            known[other] = (known_at, is_fraud)
    counts, averages, paid, shares = [], [], [], []
    for length in LENGTHS:
        own = [
            p.cents
            for p in payments
            if p.customer_id == payment.customer_id
            and p.at > at - length
            and (p.at, p.transaction_id) <= (at, number)
        ]
        counts.append(len(own))
        averages.append(sum(own) / len(own) / 100)
        there = [
            known.get(p.transaction_id, (0, False))[1]
            for p in payments
            if p.terminal_id == payment.terminal_id and at - DELAY - length < p.at <= at - DELAY
        ]
        paid.append(len(there))
        shares.append(sum(there) / len(there) if there else 0.0)
    day = (at // DAY + 3) % 7
    return (
        payment.cents / 100,
        day in (5, 6),
        at % DAY // 3_600_000_000 <= 6,
        *counts,
        *averages,
        *paid,
        *shares,
    )


def a_history(seed, size=60):
    """Payments with many ties and borders, and their labels: some late, corrected, or missing."""
    draw = random.Random(seed)
    times = [SUNDAY + draw.randrange(50 * DAY)]
    while len(times) < size:
        base = draw.choice(times)
        moved = base + draw.choice((-1, 1)) * (draw.choice(STEPS) + draw.choice((-1, 0, 0, 1)))
        fresh = SUNDAY + draw.randrange(60) * DAY + draw.choice((0, 3 * 3_600_000_000))
        times.append(draw.choice((base, moved, moved, fresh)))
    payments = [
        Payment(number, at, draw.randrange(3), draw.randrange(3), draw.randrange(50_000))
        for number, at in enumerate(draw.sample([max(at, SUNDAY) for at in times], size))
    ]
    labels = [
        (p.transaction_id, draw.random() < 0.5, p.at + DELAY + draw.choice((-DAY, 0, 0, 1, DAY)))
        for p in payments
        if draw.random() < 0.8
    ]
    labels += [
        (number, draw.random() < 0.5, known + draw.randrange(20) * DAY)
        for number, _, known in draw.sample(labels, len(labels) // 3)
    ]
    return draw, payments, labels


def fed(windows, arrivals):
    """Feed events as they arrive; the last features that were said of each payment, and their revisions."""
    said, revisions = {}, {}
    for event in arrivals:
        if isinstance(event, Payment):
            changed = windows.add(event)
            said[event.transaction_id] = windows.features(event.transaction_id)
            revisions[event.transaction_id] = 0
        else:
            changed = windows.label(*event)
        for payment in changed:
            assert payment.transaction_id in said
            said[payment.transaction_id] = windows.features(payment.transaction_id)
            revisions[payment.transaction_id] += 1
    return said, revisions


def in_some_order(draw, payments, labels):
    """An order of arrival in which payments are late by at most the lateness, and labels by any time."""
    arrivals = [(p.at + draw.choice((0, 0, 0, draw.randrange(LATENESS))), p) for p in payments]
    arrivals += [
        (label[2] + draw.choice((0, 0, -20 * DAY, draw.randrange(LATENESS))), label)
        for label in labels
    ]
    arrivals.sort(key=lambda pair: pair[0])
    return [event for _, event in arrivals]


def tables(payments, labels):
    return (
        pa.table(
            {
                name: pa.array([getattr(p, name) for p in payments], pa.int64())
                for name in Payment._fields
            }
        ),
        pa.table(
            {
                "transaction_id": pa.array([one for one, _, _ in labels], pa.int64()),
                "is_fraud": pa.array([fraud for _, fraud, _ in labels], pa.bool_()),
                "known_at": pa.array([known for _, _, known in labels], pa.int64()),
            }
        ),
    )


@pytest.mark.parametrize("seed", range(150))
def test_what_was_last_said_of_every_payment_is_what_the_definition_says(seed):
    draw, payments, labels = a_history(seed)
    arrivals = in_some_order(draw, payments, labels)
    windows = PaymentWindows()
    said, _ = fed(windows, arrivals)
    # of two labels known at the same time the one that came last counts
    came = [event for event in arrivals if not isinstance(event, Payment)]
    wrong = {
        p: (said[p.transaction_id], oracle(p, payments, came))
        for p in payments
        if said[p.transaction_id] != oracle(p, payments, came)
    }
    too_old = {p for p in wrong if p.at < windows.newest - LATENESS}
    assert set(wrong) == too_old  # only what is too old to be corrected differs, and is counted
    assert len(too_old) <= windows.uncorrected


@pytest.mark.parametrize("seed", range(150, 250))
def test_in_order_nothing_is_ever_corrected_and_all_is_exact(seed):
    _, payments, labels = a_history(seed)
    arrivals = sorted(
        [*payments, *labels],
        key=lambda e: (e.at, 1, e.transaction_id) if isinstance(e, Payment) else (e[2], 0, 0),
    )
    windows = PaymentWindows()
    said, revisions = fed(windows, arrivals)
    assert not any(revisions.values())
    assert windows.uncorrected == 0
    came = [event for event in arrivals if not isinstance(event, Payment)]
    assert said == {p.transaction_id: oracle(p, payments, came) for p in payments}


@pytest.mark.parametrize("seed", range(250, 300))
def test_a_state_that_is_rebuilt_goes_on_as_the_one_that_was_lost(seed):
    draw, payments, labels = a_history(seed)
    arrivals = in_some_order(draw, payments, labels)
    cut = draw.randrange(len(arrivals))
    whole, rebuilt = PaymentWindows(), PaymentWindows()
    fed(whole, arrivals[:cut])
    before = [event for event in arrivals[:cut] if isinstance(event, Payment)]
    known = [event for event in arrivals[:cut] if not isinstance(event, Payment)]
    newest = max((p.at for p in before), default=0)
    rebuilt.rebuild(*tables([p for p in before if p.at >= newest - RETENTION], known))
    assert rebuilt.newest == whole.newest
    for event in arrivals[cut:]:
        if isinstance(event, Payment):
            assert rebuilt.add(event) == whole.add(event)
            number = event.transaction_id
            assert rebuilt.features(number) == whole.features(number)
        else:
            assert rebuilt.label(*event) == whole.label(*event)


def test_an_event_exactly_n_days_old_is_outside_and_one_at_the_delay_is_inside():
    windows = PaymentWindows()
    at = SUNDAY + 60 * DAY
    for number, then in enumerate((at - 30 * DAY, at - 7 * DAY, at - DAY, at)):
        windows.add(Payment(number, then, 1, 1, 100))
    features = windows.features(3)
    assert features[3:6] == (1, 2, 3)
    assert features[9:12] == (1, 1, 2)  # of the terminal: the one 7 days ago, and 30 days ago


def test_the_state_is_bounded_by_time():
    windows = PaymentWindows()
    for number in range(20_000):
        windows.add(Payment(number, SUNDAY + number * DAY // 100, number % 50, number % 70, 100))
        windows.label(number, number % 3 == 0, SUNDAY + number * DAY // 100 + DELAY)
    held = RETENTION // DAY * 100
    assert held <= len(windows) <= held + 500
    assert len(windows._labels) == len(windows)
    assert sum(len(t.times) for t in windows._terminals.values()) <= held + 500
    assert 0 not in windows
    assert 19_999 in windows


def test_labels_of_payments_that_never_come_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("orchestration.streaming.payment_windows._PENDING", 10)
    windows = PaymentWindows()
    for number in range(25):
        windows.label(number, True, SUNDAY)
    assert windows.forgotten == 15
