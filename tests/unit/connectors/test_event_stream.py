"""Event streams, over the log on disk: every event once, whatever stops and goes on; gaps are told."""

from __future__ import annotations

import json
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.connectors import SOURCE_POSITION, Span, event_consumer, event_log
from orchestration.connectors.event_consumer import TOPIC_ID, open_consumer
from orchestration.connectors.event_log import Producer, create_topic, delete_before
from orchestration.connectors.event_stream import BatchMaker, EventTopic, follow, read
from orchestration.errors import MendableError, SourceUnavailableError


def topic_in(folder, **options):
    return EventTopic(
        f"log://{folder}", "orders", "shop", "orders", "WATERSHED_SHOP_URL", **options
    )


def produce(folder, numbers, *, keys=None, timestamps=None, **options):
    values = [json.dumps({"n": number}).encode() for number in numbers]
    with Producer(folder, "orders", **options) as producer:
        return producer.append_batch(values, keys, timestamps)


def numbers_in(batches):
    return [
        int(number)
        for batch in batches
        if batch.rows.num_rows
        for number in batch.rows["n"].to_pylist()
    ]


@pytest.fixture
def folder(tmp_path):
    create_topic(tmp_path, "orders")
    return tmp_path


def test_a_drain_reads_what_is_there_and_the_next_one_what_came_since(folder):
    produce(folder, range(10), timestamps=range(10))
    batches = list(read(topic_in(folder), {}, batch_rows=4))
    assert [batch.rows.num_rows for batch in batches] == [4, 4, 2]
    assert numbers_in(batches) == list(range(10))
    assert [batch.position["0"] for batch in batches] == [4, 8, 10]
    assert all(batch.first_time and batch.completes and batch.rejected is None for batch in batches)
    assert batches[1].rows[SOURCE_POSITION].to_pylist() == [f"orders/0/{n}" for n in range(4, 8)]
    position = batches[-1].position
    assert list(read(topic_in(folder), position)) == []
    produce(folder, [10, 11])
    assert numbers_in(read(topic_in(folder), position)) == [10, 11]


def test_a_drain_ends_where_the_topic_ended_although_more_keeps_coming(folder):
    produce(folder, range(3))
    batches = read(topic_in(folder), {}, batch_rows=1)
    seen = []
    for batch in batches:
        seen += numbers_in([batch])
        produce(folder, range(100, 105))
    assert seen == [0, 1, 2]


def test_an_empty_topic_has_a_position_from_which_nothing_can_be_lost_unseen(folder):
    (batch,) = read(topic_in(folder), {})
    assert (batch.rows.num_rows, batch.position["0"]) == (0, 0)
    assert list(read(topic_in(folder), batch.position)) == []
    produce(folder, range(50), segment_bytes=1)
    produce(folder, range(50), segment_bytes=1)
    delete_before(folder, "orders", 0, 50)
    with pytest.raises(MendableError, match="lost 50 events"):
        list(read(topic_in(folder), batch.position))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(5, 20),
    st.lists(st.integers(0, 3), max_size=8),
    st.randoms(use_true_random=False),
)
def test_every_event_lands_once_and_in_order_whatever_crashes_and_resumes(
    appended, partitions, batch_rows, crashes, chance
):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        create_topic(folder, "orders", partitions)
        source, position, landed, produced = topic_in(folder), {}, [], 0
        for size in [*appended, 0, 0]:
            numbers = range(produced, produced + size)
            keys = [b"%d" % chance.randrange(9) if chance.random() < 0.8 else None for _ in numbers]
            if size:
                produce(folder, numbers, keys=keys, segment_bytes=chance.choice([1, 500, 10**6]))
            produced += size
            crash_after = crashes.pop() if crashes and size else None
            for count, batch in enumerate(read(source, position, batch_rows=batch_rows)):
                if count == crash_after:
                    break  # this batch was read, but never landed
                position = batch.position
                landed += batch.rows.to_pylist()
        assert sorted(int(row["n"]) for row in landed) == list(range(produced))
        places = [row[SOURCE_POSITION].split("/") for row in landed]
        for partition in range(partitions):
            offsets = [int(at) for _, number, at in places if int(number) == partition]
            assert offsets == list(range(len(offsets)))


def test_follow_hands_over_what_comes_and_a_last_batch_when_it_is_stopped(folder):
    stopped = threading.Event()
    batches = follow(topic_in(folder), {}, max_wait_seconds=0.01, stop=stopped.is_set)
    produce(folder, [1, 2])
    first = next(batches)
    assert numbers_in([first]) == [1, 2]
    produce(folder, [3])
    assert numbers_in([next(batches)]) == [3]
    produce(folder, [4])
    stopped.set()
    assert numbers_in(batches) == [4]
    slow = follow(topic_in(folder), first.position, max_wait_seconds=100, stop=stopped.is_set)
    assert list(slow) == []


def test_follow_fills_batches_when_much_comes_and_waits_no_longer_than_it_may(folder):
    produce(folder, range(25))
    asked = iter([False] * 8 + [True] * 2)
    batches = list(
        follow(topic_in(folder), {}, batch_rows=10, max_wait_seconds=60, stop=lambda: next(asked))
    )
    assert [batch.rows.num_rows for batch in batches] == [10, 10, 5]


def test_a_partition_that_is_added_is_read_from_its_beginning(folder, monkeypatch):
    monkeypatch.setattr(event_consumer, "PARTITION_SECONDS", 0.0)
    produce(folder, [1])
    batches = follow(topic_in(folder), {}, max_wait_seconds=0.01, stop=lambda: False)
    position = next(batches).position
    create_topic(folder, "orders", 2)
    keys = [b"%d" % number for number in range(20)]
    produce(folder, range(20), keys=keys)
    seen = []
    while len(seen) < 20:
        seen += numbers_in([next(batches)])
    assert sorted(seen) == list(range(20))
    assert sorted(numbers_in(read(topic_in(folder), position))) == list(range(20))
    batches.close()


def test_events_come_while_a_look_for_partitions_has_no_answer_yet(folder, monkeypatch):
    monkeypatch.setattr(event_consumer, "PARTITION_SECONDS", 0.0)
    produce(folder, range(3))
    with open_consumer(topic_in(folder)) as consumer:
        described, answers = consumer._describe, iter([None, None])
        consumer.start({})
        create_topic(folder, "orders", 2)
        key = next(b"%d" % n for n in range(9) if event_log.partition_of(b"%d" % n, 2) == 1)
        produce(folder, [3], keys=[key])
        consumer._ask = lambda: lambda: next(answers, described())
        seen = [event.partition for _ in range(5) for event in consumer.poll(1, 0.0)]
    assert seen[:2] == [0, 0]
    assert sorted(seen) == [0, 0, 0, 1]


def test_the_low_level_consumer_hands_over_an_event_soon_after_it_was_appended(folder):
    with open_consumer(topic_in(folder)) as consumer, Producer(folder, "orders") as producer:
        consumer.start({})
        assert consumer.poll(10, wait_seconds=0.01) == []
        later = threading.Timer(0.02, producer.append, (b"k", b"v", 5))
        later.start()
        assert consumer.poll(10, wait_seconds=30) == [("orders", 0, 0, 5, b"k", b"v")]
        later.join()
        producer.append_batch([b"%d" % n for n in range(7)], timestamps=range(7))
        assert [event.offset for event in consumer.poll(3)] == [1, 2, 3]
        assert consumer.position["0"] == 4
        assert [event.offset for event in consumer.poll(100)] == [4, 5, 6, 7]


def test_events_that_were_polled_one_by_one_make_the_batch_that_read_makes(folder):
    produce(folder, range(5), timestamps=range(5))
    source = topic_in(folder)
    with open_consumer(source) as consumer:
        consumer.start({})
        table = event_log.in_columns(consumer.poll())
        made = BatchMaker(source)([table], consumer.position)
    (batch,) = read(source, {})
    assert (made.rows, made.position, made.first_time) == (batch.rows, batch.position, True)


def test_what_the_source_deleted_before_it_was_loaded_is_told_with_numbers(folder):
    produce(folder, range(3))
    position = list(read(topic_in(folder), {}))[-1].position
    for number in range(3, 20):
        produce(folder, [number], segment_bytes=1)
    low = delete_before(folder, "orders", 0, 11)
    with pytest.raises(MendableError) as caught:
        list(read(topic_in(folder), position))
    said = str(caught.value)
    for part in (
        "orders/0",
        "lost 8 events",
        "offset 3",
        "11 is the first",
        "reload shop.orders --accept-gap",
    ):
        assert part in said
    first, *_ = batches = list(read(topic_in(folder, accept_gap=True), position))
    assert numbers_in(batches) == list(range(low, 20))
    assert "lost 8 events" in first.where
    assert first.first_time
    assert list(read(topic_in(folder), batches[-1].position)) == []


def test_a_gap_that_opens_while_a_topic_is_followed_is_told(folder):
    produce(folder, [0])
    batches = follow(topic_in(folder), {}, max_wait_seconds=0.01, stop=lambda: False)
    assert numbers_in([next(batches)]) == [0]
    for number in range(1, 20):
        produce(folder, [number], segment_bytes=1)
    delete_before(folder, "orders", 0, 15)
    with pytest.raises(MendableError, match="lost 14 events"):
        list(batches)


@pytest.mark.parametrize("events", [3, 30])
def test_a_topic_that_was_made_anew_is_told_however_far_it_has_come(folder, events):
    produce(folder, range(10))
    position = list(read(topic_in(folder), {}))[-1].position
    for path in sorted((folder / "orders").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    create_topic(folder, "orders")
    produce(folder, range(events))
    with pytest.raises(MendableError, match="deleted and made anew"):
        list(read(topic_in(folder), position))
    batches = list(read(topic_in(folder, accept_gap=True), position))
    assert numbers_in(batches) == list(range(events))
    assert not batches[0].first_time  # they may be the old ones once more
    assert batches[-1].position[TOPIC_ID] != position[TOPIC_ID]


def test_a_log_that_was_cut_short_is_told(folder):
    produce(folder, range(10))
    position = list(read(topic_in(folder), {}))[-1].position | {"0": 12}
    with pytest.raises(MendableError, match="ends at 10 before the expected offset 12"):
        list(read(topic_in(folder), position))
    batches = list(read(topic_in(folder, accept_gap=True), position))
    assert (numbers_in(batches), batches[0].first_time) == (list(range(10)), False)


def test_a_damaged_log_is_told_after_the_events_before_the_damage(folder):
    produce(folder, [0])
    produce(folder, [1])
    (path,) = (folder / "orders" / "0").glob("*.log")
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)
    batches = follow(topic_in(folder), {}, max_wait_seconds=0.0, stop=lambda: False)
    assert numbers_in([next(batches)]) == [0]
    with pytest.raises(MendableError, match="damage at byte"):
        next(batches)


def test_a_span_reads_again_what_was_read_before_and_nothing_that_was_not(folder):
    times = [1_000, 5_000, 2_000, 9_000, 3_000, 4_000]  # not in order
    produce(folder, range(6), timestamps=times)
    position = list(read(topic_in(folder), {}))[-1].position
    produce(folder, [6], timestamps=[3_500])  # not read yet: it comes in its turn
    span = Span("1970-01-01T00:00:02Z", "1970-01-01T00:00:05")
    batches = list(read(topic_in(folder), position, span, batch_rows=2))
    assert numbers_in(batches) == [2, 4, 5]
    assert all(batch.position == position and not batch.first_time for batch in batches)
    assert "1970-01-01T00:00:02Z" in batches[0].where
    assert numbers_in(read(topic_in(folder), position, Span())) == list(range(6))
    assert numbers_in(read(topic_in(folder), position, Span(end="1970-01-01T00:00:02"))) == [0]
    assert list(read(topic_in(folder), {}, Span())) == []
    assert numbers_in(read(topic_in(folder), position)) == [6]


def test_a_span_of_which_some_may_be_deleted_is_told(folder):
    for number in range(10):
        produce(folder, [number], timestamps=[number * 1000], segment_bytes=1)
    position = list(read(topic_in(folder), {}))[-1].position
    delete_before(folder, "orders", 0, 4)
    with pytest.raises(MendableError, match="orders/0 lost what was before offset 4"):
        list(read(topic_in(folder), position, Span("1970-01-01T00:00:02", None)))
    later = Span("1970-01-01T00:00:05", None)
    assert numbers_in(read(topic_in(folder), position, later)) == [5, 6, 7, 8, 9]
    accepted = topic_in(folder, accept_gap=True)
    assert numbers_in(read(accepted, position, Span("1970-01-01", None))) == [4, 5, 6, 7, 8, 9]


def test_a_span_leaves_partitions_alone_that_have_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(event_consumer, "PARTITION_SECONDS", 0.0)
    create_topic(tmp_path, "orders", 2)
    keys = {event_log.partition_of(b"%d" % n, 2): b"%d" % n for n in range(9)}
    for number in range(4):
        produce(tmp_path, [number], keys=[keys[0]], timestamps=[number], segment_bytes=1)
    produce(tmp_path, [10, 11], keys=[keys[1]] * 2, timestamps=[5_000, 6_000])
    position = list(read(topic_in(tmp_path), {}))[-1].position
    delete_before(tmp_path, "orders", 0, 2)
    span = Span("1970-01-01T00:00:05", None)
    assert numbers_in(read(topic_in(tmp_path), position, span, batch_rows=1)) == [10, 11]


def test_a_span_that_is_no_time_is_told(folder):
    with pytest.raises(MendableError, match="ISO 8601"):
        list(read(topic_in(folder), {}, Span("yesterday", None)))


def test_poison_is_set_aside_with_its_bytes_and_place_and_the_good_rows_land(folder):
    good = [b'{"id": 1, "note": "a\\nb"}', b'{\n"id": 2.50\n}', b'{"id": {"x": [1.10]}}']
    bad = {
        None: "no value",
        b"\xff\xfe": "not UTF-8",
        b"{": "not JSON",
        b"": "not JSON",
        b"[1, 2]": "not an object",
        b'{"id": "%s"}' % (b"x" * 2000): "larger than 1,000 bytes",
        b'{"id": 3, "_source_position": "mine"}': "_source_position",
        b'{"id": 4, "id": 5}': "a field twice",
    }
    values = [good[0], *list(bad)[:4], good[1], *list(bad)[4:], good[2]]
    with Producer(folder, "orders") as producer:
        producer.append_batch(values)
    (batch,) = read(topic_in(folder, max_event_bytes=1000), {})
    assert batch.rows["id"].to_pylist() == ["1", "2.5", '{"x":[1.1]}']
    assert batch.rows["note"].to_pylist() == ["a\nb", None, None]
    assert batch.rows[SOURCE_POSITION].to_pylist() == ["orders/0/0", "orders/0/5", "orders/0/10"]
    rejected = batch.rejected.to_pylist()
    assert [row["raw"] for row in rejected] == list(bad)
    for row in rejected:
        assert bad[row["raw"]] in row["reason"]
        assert values[int(row[SOURCE_POSITION].rpartition("/")[2])] == row["raw"]


def test_a_batch_has_the_columns_that_were_asked_for_and_not_those_to_ignore(folder):
    with Producer(folder, "orders") as producer:
        producer.append_batch([b'{"b": 1, "secret": 2, "more": 3}', b"{}"])
    source = topic_in(folder, columns=("a", "b"), ignore=("secret",))
    (batch,) = read(source, {})
    assert batch.rows.column_names == ["a", "b", "more", SOURCE_POSITION]
    assert batch.rows["b"].to_pylist() == ["1", None]
    with Producer(folder, "orders") as producer:
        producer.append(None, b"not a row")
    (batch,) = read(source, batch.position)
    assert (batch.rows.num_rows, batch.rejected.num_rows) == (0, 1)
    assert batch.rows.column_names == ["a", "b", SOURCE_POSITION]


def test_events_may_be_avro(folder, tmp_path):
    path = tmp_path / "order.avsc"
    path.write_text('{"type": "record", "name": "o", "fields": [{"name": "n", "type": "long"}]}')
    with Producer(folder, "orders") as producer:
        producer.append_batch([b"\x06", b"{}", b"\x08"])
    (batch,) = read(topic_in(folder, decode="avro", avro_schema=str(path)), {})
    assert batch.rows["n"].to_pylist() == [3, 4]
    assert batch.rejected[SOURCE_POSITION].to_pylist() == ["orders/0/1"]


def test_a_topic_that_nobody_has_made_yet_is_empty_and_says_so(tmp_path):
    create_topic(tmp_path, "payments")
    (batch,) = read(topic_in(tmp_path), {})
    assert (batch.rows.num_rows, batch.position) == (0, {})
    assert batch.where == "topic orders is not there yet"
    create_topic(tmp_path, "orders")
    produce(tmp_path, [1, 2])
    assert numbers_in(read(topic_in(tmp_path), batch.position)) == [1, 2]


def test_a_topic_that_is_gone_is_told_with_those_that_are_there(folder):
    gone = replace(topic_in(folder), topic="payments")
    for events in (read(gone, {"0": 5}), follow(gone, {}, stop=lambda: False)):
        with pytest.raises(MendableError, match="a folder with orders"):
            list(events)
    with pytest.raises(MendableError, match="no topics"):
        list(read(topic_in(folder / "elsewhere"), {}))


def test_a_decoding_that_there_is_not_is_told(folder):
    with pytest.raises(MendableError, match="json or avro"):
        list(read(topic_in(folder, decode="protobuf"), {}))


KAFKA = EventTopic(
    "kafka://clerk:pa%2Fss@127.0.0.1:9", "orders", "shop", "orders", "WATERSHED_SHOP_URL"
)


def test_a_broker_that_is_not_there_is_told_at_once_and_without_the_password():
    for url in ("kafka://127.0.0.1:9", KAFKA.url):
        with pytest.raises(SourceUnavailableError) as caught:
            list(read(replace(KAFKA, url=url), {}))
        assert "127.0.0.1:9" in str(caught.value)
        assert "WATERSHED_SHOP_URL" in str(caught.value)
        assert "pa/ss" not in str(caught.value)
        assert "pa%2Fss" not in str(caught.value) + repr(KAFKA)


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("http://127.0.0.1:9", {}, "kafka://host:port"),
        ("kafka://127.0.0.1", {}, "kafka://host:port"),
        ("kafka://s3cr3t@x:y:z", {}, "kafka://host:port"),
        ("kafka://127.0.0.1:9?no.such.option=s3cr3t", {}, "no.such.option"),
        ("kafka://127.0.0.1:9", {"security.protocol": "s3cr3t"}, "security.protocol"),
        ("kafka://127.0.0.1:9", {"isolation.level": "s3cr3t"}, "isolation.level"),
        ("kafka://127.0.0.1:9?enable.auto.commit=true", {}, "enable.auto.commit"),
    ],
)
def test_a_wrong_url_or_option_is_named_and_its_value_is_not(url, options, said, capfd):
    with pytest.raises(MendableError) as caught:
        list(read(replace(KAFKA, url=url, options=options), {}))
    assert said in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in "".join(capfd.readouterr())
