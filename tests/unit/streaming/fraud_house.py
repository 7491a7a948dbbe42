"""A small house of card payments: a model, histories of events, a stream to put them in, and its scorer."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np

from orchestration.streaming.engine import run
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, stream_topic
from tests.unit.streaming.stream_house import Stream, text_of

BEGIN = datetime(2018, 5, 1, tzinfo=UTC)


class Linear:
    """A model with a weight for every feature, so that a score tells whether any of them differs."""

    version, alert_threshold = "linear", 0.6

    def score(self, matrix):
        weights = np.linspace(0.1, 0.9, matrix.shape[1])
        return 1 / (1 + np.exp(-(matrix @ weights - 60) / 60))

    def reasons(self, matrix, scores, most=3):
        return [[f"amount {row[0]:.2f}"] for row in matrix]


def payment(number, at, customer=1, terminal=1, amount=10.0, **other):
    return {
        "transaction_id": number,
        "transaction_at": text_of(at) if isinstance(at, datetime) else at,
        "customer_id": customer,
        "terminal_id": terminal,
        "amount": amount,
    } | other


def report(number, at, is_fraud=True):
    return {"transaction_id": number, "is_fraud": is_fraud, "reported_at": text_of(at)}


def history(seed, size, days=40, shuffled=True):
    """Events as (topic, event) in the order of arrival: some late, some twice, some corrected."""
    draw = random.Random(seed)
    events = []
    for number in range(size):
        at = BEGIN + timedelta(seconds=draw.randrange(days * 86_400))
        made = payment(
            number, at, draw.randrange(20), draw.randrange(30), draw.randrange(20_000) / 100
        )
        late = (
            timedelta(days=draw.random() * 6) if shuffled and draw.random() < 0.1 else timedelta()
        )
        events.append((at + late, "payments", made))
        if shuffled and draw.random() < 0.05:
            events.append((at + late + timedelta(hours=1), "payments", made))
        known = at + timedelta(days=7)
        events.append((known, "fraud_reports", report(number, known, draw.random() < 0.2)))
        if shuffled and draw.random() < 0.05:
            corrected = known + timedelta(days=draw.random() * 5)
            events.append(
                (corrected, "fraud_reports", report(number, corrected, draw.random() < 0.5))
            )
    return [(topic, event) for _, topic, event in sorted(events, key=lambda e: e[0])]


class Payments(Stream):
    """Card payments, their reports, and what is said of them."""

    system, topics = "payments_stream", TOPICS
    landed = ("payments", "fraud_reports", "scores")

    def use_case(self, model=None):
        return FraudScoring(self.settings, lambda: model or Linear())

    def last_scores(self):
        """Per payment the features and the score of its highest revision, as staging has it."""
        last, seen = {}, set()
        for score in self.read("scores"):
            key = (score["transaction_id"], score["revision"])
            if key in seen:
                continue
            seen.add(key)
            if score["revision"] >= last.get(key[0], {"revision": 0})["revision"]:
                last[key[0]] = score
        dull = ("scored_at", "latency_ms", "revision", "payment_position")
        return {n: {k: v for k, v in s.items() if k not in dull} for n, s in last.items()}

    def decisions(self):
        """How often each payment was decided, and how often each alert was raised."""
        first = Counter(s["transaction_id"] for s in self.read("scores") if s["revision"] == 0)
        return first, Counter(a["alert_id"] for a in self.read("alerts"))


if __name__ == "__main__":  # the process that is killed
    from orchestration.settings import load_settings
    from orchestration.streaming.publisher import open_publisher

    house = load_settings()
    with open_publisher(stream_topic(house, "payments")) as to:
        run(FraudScoring(house, Linear), to, stop=lambda: False, say=lambda line: None)
