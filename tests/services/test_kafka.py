"""A real Kafka broker: drain, follow, replay, new partitions, gaps, poison, transactions. `.ci/run` starts one."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from orchestration.connectors import SOURCE_POSITION, Span, event_consumer
from orchestration.connectors.event_consumer import TOPIC_ID, open_consumer
from orchestration.connectors.event_log import partition_of
from orchestration.connectors.event_stream import EventTopic, follow, read
from orchestration.errors import MendableError

SERVER = os.environ.get("TEST_KAFKA_URL", "")
pytestmark = pytest.mark.skipif(
    not SERVER, reason="TEST_KAFKA_URL names no broker; .ci/run starts one"
)
BROKER = {"bootstrap.servers": SERVER.removeprefix("kafka://")}


@pytest.fixture
def admin():
    return AdminClient(BROKER)


@pytest.fixture
def topic(admin) -> str:
    name = f"t-{uuid.uuid4().hex}"
    create(admin, name)
    return name


def create(admin, name, partitions=1, **config):
    admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(30)


def source_of(topic, **options):
    return EventTopic(SERVER, topic, "shop", "orders", "WATERSHED_SHOP_URL", **options)


def produce(topic, values, *, keys=None, timestamps=None, partition=None, **config):
    producer = Producer(BROKER | config)
    for number, value in enumerate(values):
        where = {} if partition is None else {"partition": partition}
        if timestamps:
            where["timestamp"] = timestamps[number]
        producer.produce(topic, value, keys[number] if keys else None, **where)
    assert producer.flush(30) == 0


def orders(numbers):
    return [json.dumps({"n": number}).encode() for number in numbers]


def numbers_in(batches):
    return [int(n) for batch in batches if batch.rows.num_rows for n in batch.rows["n"].to_pylist()]


def drained(topic, position, **options):
    """The numbers that a drain reads, and the position after it."""
    batches = list(read(source_of(topic, **options), position))
    return numbers_in(batches), batches[-1].position if batches else position


def test_a_drain_reads_what_is_there_and_the_next_one_what_came_since(topic):
    assert drained(topic, {})[0] == []
    produce(topic, orders(range(1000)))
    batches = list(read(source_of(topic), {}, batch_rows=300))
    assert numbers_in(batches) == list(range(1000))
    assert max(batch.rows.num_rows for batch in batches) <= 300
    assert batches[0].rows[SOURCE_POSITION][5].as_py() == f"{topic}/0/5"
    assert all(batch.first_time for batch in batches)
    position = batches[-1].position
    assert drained(topic, position) == ([], position)
    produce(topic, orders([1000]))
    assert drained(topic, position)[0] == [1000]


def test_follow_hands_over_what_comes_until_it_is_stopped(topic):
    stopped = threading.Event()
    batches = follow(source_of(topic), {}, max_wait_seconds=0.05, stop=stopped.is_set)
    produce(topic, orders([1, 2]))
    assert numbers_in([next(batches)]) == [1, 2]
    produce(topic, orders([3]))
    assert numbers_in([next(batches)]) == [3]
    stopped.set()
    assert numbers_in(batches) == []


def test_the_low_level_consumer_gives_events_with_their_place_time_key_and_value(topic):
    produce(topic, [b"v", None], keys=[b"k", None], timestamps=[5, 6])
    with open_consumer(source_of(topic)) as consumer:
        consumer.start({})
        events = []
        while len(events) < 2:
            events += consumer.poll()
        assert events == [(topic, 0, 0, 5, b"k", b"v"), (topic, 0, 1, 6, None, None)]
        assert consumer.position["0"] == 2


def test_a_key_goes_to_the_partition_to_which_the_log_on_disk_takes_it(admin):
    topic = f"t-{uuid.uuid4().hex}"
    create(admin, topic, partitions=5)
    keys = [b"customer %d" % number for number in range(50)]
    produce(topic, orders(range(50)), keys=keys)
    (batch,) = read(source_of(topic), {})
    for row in batch.rows.to_pylist():
        partition = int(row[SOURCE_POSITION].split("/")[1])
        assert partition == partition_of(keys[int(row["n"])], 5)


def test_a_partition_that_is_added_is_read_from_its_beginning(admin, topic, monkeypatch):
    monkeypatch.setattr(event_consumer, "PARTITION_SECONDS", 0.0)
    produce(topic, orders([1]))
    batches = follow(source_of(topic), {}, max_wait_seconds=0.05, stop=lambda: False)
    position = next(batches).position
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)
    produce(topic, orders([2, 3]), partition=2)
    seen = []
    while len(seen) < 2:
        seen += numbers_in([next(batches)])
    batches.close()
    assert seen == [2, 3]
    assert drained(topic, position)[0] == [2, 3]


def test_a_span_reads_again_what_was_read_before_and_nothing_that_was_not(topic):
    produce(topic, orders(range(6)), timestamps=[1_000, 5_000, 2_000, 9_000, 3_000, 4_000])
    position = drained(topic, {})[1]
    produce(topic, orders([6]), timestamps=[3_500])
    span = Span("1970-01-01T00:00:02", "1970-01-01T00:00:05")
    batches = list(read(source_of(topic), position, span))
    assert numbers_in(batches) == [2, 4, 5]
    assert all(batch.position == position and not batch.first_time for batch in batches)
    assert drained(topic, position)[0] == [6]


def test_what_the_broker_deleted_before_it_was_loaded_is_told_with_numbers(admin, topic):
    produce(topic, orders(range(3)))
    position = drained(topic, {})[1]
    produce(topic, orders(range(3, 20)))
    up_to = TopicPartition(topic, 0, 11)
    admin.delete_records([up_to])[up_to].result(30)
    with pytest.raises(
        MendableError, match=rf"{topic}/0 lost 8 events: offset 3 .* 11 is the first"
    ):
        drained(topic, position)
    (batch,) = read(source_of(topic, accept_gap=True), position)
    assert numbers_in([batch]) == list(range(11, 20))
    assert "lost 8 events" in batch.where


def test_a_gap_that_opens_while_a_topic_is_followed_is_told(admin, topic):
    produce(topic, orders(range(10)))
    with open_consumer(source_of(topic)) as consumer:
        consumer.start({})
        up_to = TopicPartition(topic, 0, 4)
        admin.delete_records([up_to])[up_to].result(30)
        # The first fetch may have been faster than the deletion; from offset 0 the next is not.
        consumer._go_to({0: 0})
        with pytest.raises(MendableError, match="lost 4 events"):
            list(iter(lambda: consumer.poll(10), None))


@pytest.mark.parametrize("events", [3, 30])
def test_a_topic_that_was_made_anew_is_told_however_far_it_has_come(admin, topic, events):
    produce(topic, orders(range(10)))
    position = drained(topic, {})[1]
    admin.delete_topics([topic])[topic].result(30)
    create_when_gone(admin, topic)
    produce(topic, orders(range(events)))
    with pytest.raises(MendableError, match="deleted and made anew"):
        drained(topic, position)
    numbers, after = drained(topic, position, accept_gap=True)
    assert numbers == list(range(events))
    assert after[TOPIC_ID] != position[TOPIC_ID]


def create_when_gone(admin, topic):
    gone = threading.Event()
    for _ in range(200):
        if topic not in admin.list_topics(timeout=10).topics:
            break
        gone.wait(0.05)
    create(admin, topic)


def test_poison_is_set_aside_with_its_bytes_and_place_and_the_good_rows_land(topic):
    values = [
        b'{"n": 1}',
        None,
        b"\xff",
        b"{",
        b'{"n": 100000000000000000000000.10}',
        b"x" * 200_000,
    ]
    produce(topic, values)
    (batch,) = read(source_of(topic, max_event_bytes=100_000), {})
    assert batch.rows["n"].to_pylist() == ["1", "100000000000000000000000.10"]
    rejected = batch.rejected.to_pylist()
    assert [row["raw"] for row in rejected] == [None, b"\xff", b"{", b"x" * 200_000]
    assert [row[SOURCE_POSITION] for row in rejected] == [f"{topic}/0/{n}" for n in (1, 2, 3, 5)]


def test_aborted_transactions_are_not_read_and_open_ones_are_waited_for(topic):
    committed, aborted, unfinished = (
        Producer(BROKER | {"transactional.id": f"{topic}-{name}"}) for name in "abc"
    )
    for producer in (committed, aborted, unfinished):
        producer.init_transactions(30)
        producer.begin_transaction()
    for number in range(3):
        aborted.produce(topic, orders([100 + number])[0])
        committed.produce(topic, orders([number])[0])
    aborted.flush(30)
    aborted.abort_transaction(30)
    committed.commit_transaction(30)
    numbers, position = drained_when_there(topic, {})
    assert numbers == [0, 1, 2]
    assert drained(topic, position) == ([], position)  # also past the records that end transactions
    unfinished.produce(topic, orders([7])[0])
    unfinished.flush(30)
    produce(topic, orders([8]))
    numbers, position = drained(topic, position)
    assert numbers == []  # what comes after an open transaction comes after it
    unfinished.commit_transaction(30)
    assert drained_when_there(topic, position)[0] == [7, 8]


def drained_when_there(topic, position):
    """What a transaction committed: its end is written a moment after the commit has been answered."""
    until = time.monotonic() + 30
    numbers, position = drained(topic, position)
    while not numbers and time.monotonic() < until:
        numbers, position = drained(topic, position)
    return numbers, position


def test_a_topic_that_nobody_has_made_yet_is_empty_and_one_that_is_gone_is_told(admin):
    topic = f"t-{uuid.uuid4().hex}"
    (batch,) = read(source_of(topic), {})
    assert (batch.rows.num_rows, batch.position) == (0, {})
    assert batch.where == f"topic {topic} is not there yet"
    with pytest.raises(MendableError, match="other topics"):
        drained(topic, {"0": 5})
    create(admin, topic)
    produce(topic, orders([1]))
    assert drained(topic, batch.position)[0] == [1]
