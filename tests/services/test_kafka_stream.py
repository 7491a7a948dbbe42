"""Through a real Kafka broker: a payment comes in, its score and its alert come out, a restart repeats neither."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "streaming"))

from datetime import timedelta

from fraud_house import BEGIN, Linear, payment, report

from orchestration.connectors.event_consumer import open_consumer
from orchestration.settings import load_settings
from orchestration.streaming import fraud_scoring
from orchestration.streaming.engine import run
from orchestration.streaming.fraud_scoring import FraudScoring, stream_topic
from orchestration.streaming.publisher import open_publisher
from orchestration.warehouse.connect import connect

SERVER = os.environ.get("TEST_KAFKA_URL", "")
pytestmark = pytest.mark.skipif(
    not SERVER, reason="TEST_KAFKA_URL names no broker; `make services` starts one"
)


@pytest.fixture
def house(monkeypatch):
    """Settings whose stream is on the broker."""
    monkeypatch.setenv("WATERSHED_PAYMENTS_STREAM_URL", SERVER)
    settings = load_settings()
    connect(settings).close()
    return settings


def read_all(source, expected):
    """All events of a topic, once there are as many as expected."""
    found, deadline = [], time.monotonic() + 30
    with open_consumer(source) as consumer:
        consumer.start({})
        while len(found) < expected and time.monotonic() < deadline:
            found += [json.loads(event.value) for event in consumer.poll()]
        found += [json.loads(event.value) for event in consumer.poll(500, 0.5)]
    return found


def test_a_payment_becomes_a_score_and_an_alert_and_a_restart_repeats_neither(house):
    topics = {name: stream_topic(house, name) for name in fraud_scoring.TOPICS}
    producer = Producer({"bootstrap.servers": SERVER.removeprefix("kafka://")})
    with open_publisher(topics["payments"]) as publisher:
        publisher.create(dict.fromkeys(fraud_scoring.TOPICS, 1))
        assert publisher.create(dict.fromkeys(fraud_scoring.TOPICS, 1)) == []
    producer.produce("payments", b"not a payment")
    for number in range(20):
        at = BEGIN + timedelta(minutes=number)
        amount = 900.0 if number == 7 else 5.0
        producer.produce("payments", json.dumps(payment(number, at, number, number, amount)))
    producer.produce("fraud_reports", json.dumps(report(7, BEGIN)))
    assert producer.flush(30) == 0

    def scored(expected):
        stop = threading.Event()
        threading.Timer(20, stop.set).start()
        with open_publisher(topics["payments"]) as publisher:
            said = []

            def say(line):
                said.append(line)
                if len(said) > 2:
                    stop.set()

            return run(FraudScoring(house, Linear), publisher, stop=stop.is_set, say=say)

    first = scored(20)
    assert (first.scored, first.alerts) == (20, 1)
    assert dict(first.set_aside) == {"malformed JSON": 1}
    again = scored(0)
    assert (again.scored, again.alerts) == (0, 0)
    scores = read_all(topics["scores"], 20)
    assert sorted(score["transaction_id"] for score in scores) == list(range(20))
    (alert,) = read_all(topics["alerts"], 1)
    assert alert["transaction_id"] == 7
    assert alert["alert_id"] == "payments/0/8"
    assert alert["reasons"] == "amount 900.00"
