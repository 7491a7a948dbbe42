"""A small house of card payments: a model, histories of events, a stream to put them in, and its scorer."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from orchestration.connectors import event_log, event_stream
from orchestration.contracts.raw import contract_of
from orchestration.landing.land import RawTable, land
from orchestration.streaming.engine import run
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, stream_topic
from orchestration.streaming.publisher import LogPublisher
from orchestration.warehouse.connect import connect

BEGIN = datetime(2018, 5, 1, tzinfo=UTC)


class Linear:
    """A model with a weight for every feature, so that a score tells whether any of them differs."""

    version, alert_threshold = "linear", 0.6

    def score(self, matrix):
        weights = np.linspace(0.1, 0.9, matrix.shape[1])
        return 1 / (1 + np.exp(-(matrix @ weights - 60) / 60))

    def reasons(self, matrix, scores, most=3):
        return [[f"amount {row[0]:.2f}"] for row in matrix]


def text_of(at):
    return at.isoformat().replace("+00:00", "Z")


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


class Stream:
    """The stream that the settings name, on disk."""

    def __init__(self, settings):
        self.settings = settings
        connect(settings).close()
        self.folder = event_log.folder_of(settings.value_of("payments_stream_url"))
        for topic in TOPICS:
            event_log.create_topic(self.folder, topic)

    def put(self, events):
        for topic in ("fraud_reports", "payments"):
            values = [
                e if isinstance(e, bytes) else json.dumps(e).encode()
                for t, e in events
                if t == topic
            ]
            if values:
                with event_log.Producer(self.folder, topic) as producer:
                    producer.append_batch(values)

    def read(self, topic):
        with event_log_reader(self.folder, topic) as events:
            return [json.loads(event.value) for event in events]

    def end(self, topic):
        return event_log.watermarks(self.folder, topic, 0)[1]

    def land(self, *entities):
        for entity in entities or ("payments", "fraud_reports", "scores"):
            topic = stream_topic(self.settings, entity)
            table = RawTable(f"payments_stream__{entity}", contract_of("payments_stream", entity))
            land(self.settings, table, lambda at, topic=topic: event_stream.read(topic, at))

    def score(self, model=None):
        """Score until nothing is left; what was counted."""
        with Counting(stream_topic(self.settings, "payments")) as publisher:
            use_case = Heard(self.settings, lambda: model or Linear())
            use_case.publisher = publisher
            return run(use_case, publisher, stop=lambda: publisher.idle > 6, say=lambda line: None)

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


class Counting(LogPublisher):
    """Knows for how many looks nothing has come."""

    idle = 0

    def serve(self):
        self.idle += 1


class Heard(FraudScoring):
    """Says that something came, also where nothing is published: what an earlier run had scored."""

    def update(self, events, received):
        self.publisher.idle = 0
        return super().update(events, received)


class event_log_reader:
    """All events of a topic of one partition."""

    def __init__(self, folder: Path, topic: str):
        self.reader, self.topic = event_log.Reader(folder, topic, 0, 0), topic

    def __enter__(self):
        events = []
        while slices := self.reader.read():
            events += event_log.events_of(self.topic, slices)
        return events

    def __exit__(self, *_):
        self.reader.close()


if __name__ == "__main__":  # the process that is killed
    from orchestration.settings import load_settings
    from orchestration.streaming.publisher import open_publisher

    house = load_settings()
    with open_publisher(stream_topic(house, "payments")) as to:
        run(FraudScoring(house, Linear), to, stop=lambda: False, say=lambda line: None)
