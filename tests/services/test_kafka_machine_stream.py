"""Through a real Kafka broker: readings of three partitions become health and warnings; a restart repeats none."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from confluent_kafka import Producer

from orchestration.connectors.event_consumer import open_consumer
from orchestration.demo.plant import simulate
from orchestration.settings import load_settings
from orchestration.streaming.engine import run
from orchestration.streaming.maintenance_scoring import TOPICS, stream_topic
from orchestration.streaming.publisher import open_publisher
from orchestration.warehouse.connect import connect
from tests.unit.streaming.maintenance_house import WORLD, known_of, readings_of, use_case

SERVER = os.environ.get("TEST_KAFKA_URL", "")
pytestmark = pytest.mark.skipif(
    not SERVER, reason="TEST_KAFKA_URL names no broker; `make services` starts one"
)
PARTITIONS = 3


@pytest.fixture
def house(monkeypatch):
    """Settings whose plant is on the broker."""
    monkeypatch.setenv("WATERSHED_PLANT_STREAM_URL", SERVER)
    settings = load_settings()
    connect(settings).close()
    return settings


def read_all(source):
    """All events of a topic."""
    found = []
    with open_consumer(source) as consumer:
        consumer.start({})
        ends = {part: end for part, (_, end) in consumer.watermarks().items()}
        while not consumer.reached(ends):
            found += [json.loads(event.value) for event in consumer.poll(5_000, 0.5)]
    return found


def test_readings_become_health_and_warnings_and_a_restart_repeats_none(house):
    simulated = simulate(WORLD)
    plant, events = known_of(simulated), [event for _, event in readings_of(simulated)]
    topics = {name: stream_topic(house, name) for name in TOPICS}
    with open_publisher(topics["readings"]) as publisher:
        publisher.create({name: PARTITIONS if name == "readings" else 1 for name in TOPICS})
    producer = Producer({"bootstrap.servers": SERVER.removeprefix("kafka://")})
    for event in events:
        producer.produce("readings", json.dumps(event), event["machine_id"])
        producer.poll(0)
    producer.produce("readings", b"not a reading", "nobody's")
    assert producer.flush(60) == 0

    def scored(enough):
        stop, until = threading.Event(), time.monotonic() + 60
        with open_publisher(topics["readings"]) as publisher:
            scorer, seen = use_case(house, plant), [0]
            update = scorer.update

            def counted(batch, received):
                seen[0] += len(batch)
                return update(batch, received)

            scorer.update = counted
            return run(
                scorer,
                publisher,
                stop=lambda: stop.is_set() or seen[0] >= enough or time.monotonic() > until,
                say=lambda line: None,
            )

    first = scored(len(events) + 1)
    assert first.set_aside["malformed JSON"] == 1
    health = read_all(topics["machine_health"])
    hours = {(one["machine_id"], one["as_of_at"]) for one in health}
    assert len(hours) == len(health) > 1_000
    assert {one["reading_position"].split("/")[1] for one in health} == {"0", "1", "2"}
    features = read_all(topics["sensor_features"])
    assert {(one["machine_id"], one["as_of_at"]) for one in features} == hours
    warnings = read_all(topics["warnings"])
    opened = [one["warning_id"] for one in warnings if one["state"] == "opened"]
    assert len(opened) == len(set(opened)) == first.alerts > 0
    scored(len(events) + 1)  # nothing has landed: all of it comes again
    assert len(read_all(topics["machine_health"])) == len(health)
    assert len(read_all(topics["sensor_features"])) == len(features)
    assert len(read_all(topics["warnings"])) == len(warnings)
