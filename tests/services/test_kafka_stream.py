"""The scorer through a real Kafka broker: what it says, and that it goes on whatever comes or goes."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from orchestration.connectors import event_stream
from orchestration.connectors.event_consumer import open_consumer
from orchestration.contracts.raw import contract_of
from orchestration.landing.land import RawTable, land
from orchestration.learning.fraud_detection import DERIVED, FEATURES, BaselineRule, Model
from orchestration.registry import store
from orchestration.settings import load_settings
from orchestration.streaming import champion as champions
from orchestration.streaming.engine import run
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, champion_of, stream_topic
from orchestration.streaming.publisher import open_publisher
from orchestration.warehouse.connect import connect
from tests.unit.streaming.fraud_house import BEGIN, Linear, payment, report

SERVER = os.environ.get("TEST_KAFKA_URL", "")
LARGEST = 11 << 20
"""Bytes of the largest message that the broker takes in the topic of payments."""
pytestmark = pytest.mark.skipif(
    not SERVER, reason="TEST_KAFKA_URL names no broker; `make services` starts one"
)


def settings_of(url, monkeypatch):
    """Settings whose stream is on a broker, with none of its topics."""
    monkeypatch.setenv("WATERSHED_PAYMENTS_STREAM_URL", url)
    settings = load_settings()
    connect(settings).close()
    admin = AdminClient({"bootstrap.servers": address_of(url)})
    there = [topic for topic in admin.list_topics(timeout=30).topics if topic in TOPICS]
    for deleted in admin.delete_topics(there).values() if there else ():
        deleted.result(30)
    wait_until(lambda: not set(TOPICS) & set(admin.list_topics(timeout=30).topics))
    return settings


@pytest.fixture
def house(monkeypatch):
    return settings_of(SERVER, monkeypatch)


def address_of(url):
    return url.removeprefix("kafka://")


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def produce(settings, events, **config):
    """Put payments into their topic."""
    url = settings.value_of("payments_stream_url")
    producer = Producer({"bootstrap.servers": address_of(url)} | config)
    for event in events:
        producer.produce("payments", event if isinstance(event, bytes) else json.dumps(event))
    assert producer.flush(60) == 0


def payments(numbers, **amounts):
    """A payment a minute, of 5.00 where no amount is given."""
    return [
        payment(n, BEGIN + timedelta(minutes=n), n, n, amounts.get(f"at_{n}", 5.0)) for n in numbers
    ]


@contextmanager
def scoring(settings, champion=Linear):
    """The scorer in a thread, once its topics are there; what it says."""
    stop, said = threading.Event(), []
    with open_publisher(stream_topic(settings, "payments")) as publisher:
        publisher.create(dict.fromkeys(TOPICS, 1))

    def score():
        with open_publisher(stream_topic(settings, "payments")) as publisher:
            run(FraudScoring(settings, champion), publisher, stop=stop.is_set, say=said.append)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(score)
        try:
            yield said
        finally:
            stop.set()
            done.result(60)


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
    topics = {name: stream_topic(house, name) for name in TOPICS}
    producer = Producer({"bootstrap.servers": SERVER.removeprefix("kafka://")})
    with open_publisher(topics["payments"]) as publisher:
        assert publisher.create(dict.fromkeys(TOPICS, 1)) == list(TOPICS)
        assert publisher.create(dict.fromkeys(TOPICS, 1)) == []
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


def test_a_message_of_10_mb_is_set_aside_and_the_next_payment_is_scored(house):
    with open_publisher(stream_topic(house, "payments")) as publisher:
        publisher.create(dict.fromkeys(TOPICS, 1))
    admin = AdminClient({"bootstrap.servers": address_of(SERVER)})
    allow_large(admin, "payments")
    huge = json.dumps(payment(1, BEGIN) | {"note": "x" * (10 << 20)}).encode()
    produce(house, [*payments([0]), huge, *payments([2])], **{"message.max.bytes": LARGEST})
    with scoring(house) as said:
        scores = read_all(stream_topic(house, "scores"), 2)
        wait_until(lambda: any("too large 1" in line for line in said))
    assert [score["transaction_id"] for score in scores] == [0, 2]
    topic = stream_topic(house, "payments")
    table = RawTable("payments_stream__payments", contract_of("payments_stream", "payments"))
    landed = land(house, table, lambda at: event_stream.read(topic, at))
    assert (landed.rows_kept, landed.rows_quarantined) == (2, 1)
    (reason,) = landed.reasons
    assert reason == "larger than 1,048,576 bytes"


def test_a_champion_that_is_damaged_is_told_once_and_the_one_before_it_goes_on(house, monkeypatch):
    monkeypatch.setattr(champions, "_EVERY_SECONDS", 0.05)
    inputs = len(FEATURES) + len(DERIVED)
    line = {name: [0.0] * inputs for name in ("means", "weights")} | {"scales": [1.0] * inputs}
    good = Model(datetime(2018, 5, 7), "logistic_regression", 0.9, line | {"intercept": [0.0]})
    damaged = good.to_json().replace("0.9", "0.1", 1)

    aliases, texts = {}, {}

    def put(day, text):
        version = good.version if day == 7 else f"of day {day}"
        texts[version] = text
        aliases[""] = store.Registered("fraud_detection", str(day), "", version, "", "")

    monkeypatch.setattr(store, "last_written", lambda settings: None)
    monkeypatch.setattr(store, "champions", lambda settings, use_case: dict(aliases))
    monkeypatch.setattr(store, "parameters_of", lambda settings, of, one: texts[one.version])
    said = []
    put(1, damaged)
    with champion_of(house, said.append) as champion, scoring(house, champion):
        produce(house, payments([0, 1], at_1=900.0))
        (alert,) = read_all(stream_topic(house, "alerts"), 1)
        assert (alert["model_version"], alert["transaction_id"]) == (BaselineRule.version, 1)
        assert alert["reasons"] == "amount 900.00 is above 220"
        put(7, good.to_json())
        wait_until(lambda: champion().version == good.version)
        put(14, damaged)
        wait_until(lambda: len(said) == 3)
        time.sleep(0.5)  # some looks more
        produce(house, payments([2]))
        scores = read_all(stream_topic(house, "scores"), 3)
    assert [score["model_version"] for score in scores] == [BaselineRule.version] * 2 + [
        good.version
    ]
    trouble = "the champion cannot be loaded (MendableError); scoring with"
    assert said == [
        f"{trouble} {BaselineRule.version}",
        f"scoring with {good.version}",
        f"{trouble} {good.version}",
    ]


def test_a_broker_that_goes_away_and_comes_back_costs_no_score(tmp_path, monkeypatch):
    spec = spec_from_file_location(
        "servers", Path(__file__).resolve().parents[2] / ".ci" / "servers.py"
    )
    servers = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "servers", servers)
    spec.loader.exec_module(servers)
    sites = [servers.Site(tmp_path / "kafka")]
    try:
        _, url = servers.kafka(sites[0], servers._free_port(), "")
        house = settings_of(url, monkeypatch)
        with scoring(house) as said:
            produce(house, payments(range(100)))
            sites[0].stop()  # while it scores, at once
            told = len(said)
            wait_until(
                lambda: any("lag" not in line or "connection" in line for line in said[told:])
            )
            sites.append(again(servers, sites[0]))
            produce(house, payments(range(100, 150)))
            scores = read_all(stream_topic(house, "scores"), 150)
    finally:
        for site in sites:
            site.stop()
    assert [score["transaction_id"] for score in scores] == list(range(150))


def again(servers, site):
    """The broker on the same port and data as a new process."""
    other = servers.Site(site.folder.with_name("again"))
    properties = str(site.folder / "server.properties")
    other.serve(
        *servers._java("kafka.server.KafkaRaftServer"), "-Xmx512m", "kafka.Kafka", properties,
        ready="Kafka Server started",
    )  # fmt: skip
    return other


def allow_large(admin, topic):
    entry = ConfigEntry(
        "max.message.bytes", str(LARGEST), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)
