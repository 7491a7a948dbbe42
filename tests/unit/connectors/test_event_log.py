"""The embedded log: every event exactly once and in order, whatever is cut, killed, deleted or damaged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.connectors import event_log
from orchestration.connectors.event_log import (
    Gap,
    Producer,
    Reader,
    create_topic,
    delete_before,
    describe_topic,
    events_of,
    offset_at,
    partition_of,
    table_of,
    watermarks,
)
from orchestration.errors import MendableError

TOPIC = "orders"


def produce(folder, values, *, timestamps=None, **options):
    with Producer(folder, TOPIC, **options) as producer:
        return producer.append_batch(values, timestamps=timestamps)


def read_all(folder, partition=0, offset=0, seen=None):
    """Every event from `offset` on, as (offset, timestamp, key, value); also added to `seen`."""
    reader = Reader(folder, TOPIC, partition, offset)
    seen = [] if seen is None else seen
    while slices := reader.read(700):
        seen += [event[2:] for event in events_of(TOPIC, slices)]
    reader.close()
    return seen


def values_of(events):
    return [value for *_, value in events]


def last_segment(folder, partition=0):
    return max((folder / TOPIC / str(partition)).glob("*.log"))


@pytest.fixture
def folder(tmp_path):
    create_topic(tmp_path, TOPIC)
    return tmp_path


texts = st.none() | st.binary(max_size=40)
batches = st.lists(st.tuples(st.integers(0, 2**40), texts, texts), min_size=1, max_size=6)
steps = st.one_of(
    st.tuples(st.just("append"), batches),
    st.tuples(st.just("crash"), batches, st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("read"), st.integers(1, 200)),
    st.tuples(st.just("new reader"), st.floats(0, 1)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=20), st.sampled_from([1, 300, 100_000]))
def test_any_interleaving_of_appends_crashes_restarts_and_reads_gives_every_event_once(
    plan, segment_bytes
):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        create_topic(folder, TOPIC)
        producer = Producer(folder, TOPIC, segment_bytes=segment_bytes)
        expected: list[tuple] = []
        readers: list[tuple[Reader, list[tuple], int]] = [(Reader(folder, TOPIC, 0, 0), [], 0)]

        def append(events):
            columns = list(zip(*events, strict=True))
            return producer.append_batch(columns[2], columns[1], columns[0])

        for step, *details in plan:
            if step == "append":
                begin = len(expected)
                assert append(details[0]) == {0: range(begin, begin + len(details[0]))}
                expected += [(begin + at, *event) for at, event in enumerate(details[0])]
            elif step == "crash":
                # What the broken append wrote, one frame, is cut at some byte before its end.
                append(details[0])
                data = sum(len(text or b"") for event in details[0] for text in event[1:])
                frame = event_log._FRAME.size + 17 * len(details[0]) + 4 + data
                path = last_segment(folder)
                os.truncate(path, path.stat().st_size - frame + int(frame * details[1]))
                producer.close()
                producer = Producer(folder, TOPIC, segment_bytes=segment_bytes)
            elif step == "restart":
                producer.close()
                producer = Producer(folder, TOPIC, segment_bytes=segment_bytes)
            elif step == "read":
                for reader, seen, _ in readers:
                    seen += [event[2:] for event in events_of(TOPIC, reader.read(details[0]))]
            else:
                begin = int(details[0] * len(expected))
                readers.append((Reader(folder, TOPIC, 0, begin), [], begin))
        producer.close()
        for reader, seen, begin in readers:
            while slices := reader.read():
                seen += [event[2:] for event in events_of(TOPIC, slices)]
            reader.close()
            assert seen == expected[begin:]
        assert watermarks(folder, TOPIC, 0) == (0, len(expected))


def test_events_one_by_one_and_in_columns_are_the_same(folder):
    with Producer(folder, TOPIC) as producer:
        producer.append_batch([b"a", None, b""], [None, b"k", b""], [3, 1, 2])
        producer.append(b"k2", b"b" * 1000, 9)
        producer.append_batch([b"%d" % n for n in range(300)], timestamps=[7] * 300)
    slices = Reader(folder, TOPIC, 0, 2).read()
    rows = table_of(slices).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (e.partition, e.offset, e.timestamp, e.key, e.value) for e in events_of(TOPIC, slices)
    ]
    assert [row["offset"] for row in rows] == list(range(2, 304))
    assert rows[0] == {"partition": 0, "offset": 2, "timestamp": 2, "key": b"", "value": b""}


def test_a_tail_cut_at_any_byte_is_never_served_and_the_next_event_takes_its_place(folder):
    produce(folder, [b"whole"])
    path = last_segment(folder)
    begin = path.stat().st_size
    produce(folder, [b"torn", b"torn too"])
    content = path.read_bytes()
    for size in range(begin, len(content)):
        path.write_bytes(content[:size])
        reader = Reader(folder, TOPIC, 0, 0)
        assert values_of(events_of(TOPIC, reader.read())) == [b"whole"]
        assert reader.read() == []
        assert produce(folder, [b"next"]) == {0: range(1, 2)}
        assert values_of(events_of(TOPIC, reader.read())) == [b"next"], size
        reader.close()


def test_a_reader_waits_for_a_frame_that_is_still_being_written(folder):
    produce(folder, [b"a" * 5000, b"b" * 5000])
    path = last_segment(folder)
    content = path.read_bytes()
    path.write_bytes(content[:40])
    reader = Reader(folder, TOPIC, 0, 0)
    with path.open("ab") as file:
        for begin in range(40, len(content), 997):
            assert reader.read() == []
            file.write(content[begin : begin + 997])
            file.flush()
    assert len(events_of(TOPIC, reader.read())) == 2


def test_a_flipped_byte_anywhere_is_an_error_and_never_another_event(folder):
    for number in range(3):
        produce(folder, [b"event %d" % number], timestamps=[number])
    path = last_segment(folder)
    content, true = path.read_bytes(), read_all(folder)
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        damaged = at * 3 // len(content)
        seen = []
        with pytest.raises(MendableError, match=f"damage at byte {damaged * len(content) // 3:,}"):
            read_all(folder, seen=seen)
        assert seen == true[:damaged]


def test_damage_at_the_end_is_refused_and_not_cut_off_for_it_may_have_been_acknowledged(folder):
    produce(folder, [b"first"])
    path = last_segment(folder)
    begin = path.stat().st_size
    produce(folder, [b"acknowledged"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MendableError, match=f"truncate -s {begin} "):
        produce(folder, [b"next"])
    assert path.read_bytes() == content
    os.truncate(path, begin)
    assert produce(folder, [b"next"]) == {0: range(1, 2)}


def test_zeros_that_a_power_cut_left_are_cut_off(folder):
    produce(folder, [b"first"])
    with last_segment(folder).open("ab") as file:
        file.write(bytes(5000))
    assert produce(folder, [b"next"]) == {0: range(1, 2)}
    assert values_of(read_all(folder)) == [b"first", b"next"]


def test_an_append_that_fails_halfway_leaves_nothing_of_it(folder, monkeypatch):
    with Producer(folder, TOPIC) as producer:
        producer.append(None, b"first", 1)
        write = os.pwrite

        def disk_full(file, content, at):
            if at > 100:
                raise OSError(28, "No space left on device")
            return write(file, content[:50], at)

        monkeypatch.setattr(os, "pwrite", disk_full)
        with pytest.raises(OSError, match="No space"):
            producer.append(None, b"x" * 1000, 2)
        monkeypatch.undo()
        assert producer.append(None, b"second", 3) == (0, 1)
    assert values_of(read_all(folder)) == [b"first", b"second"]


CHILD = """
import sys
from pathlib import Path
from orchestration.connectors.event_log import Producer

folder, start = Path(sys.argv[1]), int(sys.argv[2])
producer = Producer(folder, "orders", fsync=True, segment_bytes=20_000)
number = start
while True:
    batch = [b"%d:" % n + b"x" * (n * 7919 % 900) for n in range(number, number + 1 + number % 40)]
    written = producer.append_batch(batch)[0]
    number = written.stop
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_a_killed_producer_loses_nothing_it_acknowledged_and_leaves_no_half_event(folder):
    chance = random.Random(20_171)
    end = 0
    for _ in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(end)],
            stdout=subprocess.PIPE,
            cwd=Path(event_log.__file__).parents[2],
        )
        acknowledged = [int(child.stdout.readline())]
        with suppress(subprocess.TimeoutExpired):
            child.wait(chance.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        acknowledged += [
            int(line) for line in child.communicate()[0].splitlines(True) if line[-1:] == b"\n"
        ]
        end = watermarks(folder, TOPIC, 0)[1]
        assert end >= acknowledged[-1] > 0
    events = read_all(folder)
    assert [offset for offset, *_ in events] == list(range(end))
    assert values_of(events) == [b"%d:" % n + b"x" * (n * 7919 % 900) for n in range(end)]


def test_a_partition_has_one_producer_at_a_time(folder):
    with Producer(folder, TOPIC) as producer:
        producer.append(None, b"a")
        with (
            Producer(folder, TOPIC) as second,
            pytest.raises(MendableError, match="another producer"),
        ):
            second.append(None, b"b")
    with Producer(folder, TOPIC) as second:
        assert second.append(None, b"b") == (0, 1)


def test_a_key_goes_to_one_partition_and_events_without_a_key_to_all(tmp_path):
    create_topic(tmp_path, TOPIC, 3)
    keys = [b"customer %d" % (n % 17) for n in range(200)]
    values = [b"%d" % n for n in range(200)]
    with Producer(tmp_path, TOPIC) as producer:
        written = producer.append_batch(values, keys, [0] * 200)
        assert producer.append(keys[0], b"again") == (
            partition_of(keys[0], 3),
            len(written[partition_of(keys[0], 3)]),
        )
        assert {producer.append(None, b"any")[0] for _ in range(3)} == {0, 1, 2}
    for partition, offsets in written.items():
        mine = [at for at, key in enumerate(keys) if partition_of(key, 3) == partition]
        assert len(mine) == len(offsets)
        events = read_all(tmp_path, partition)[: len(mine)]
        assert values_of(events) == [values[at] for at in mine]


def test_a_topic_gets_more_partitions_but_never_fewer(tmp_path):
    create_topic(tmp_path, TOPIC, 2)
    topic_id = describe_topic(tmp_path, TOPIC)[0]
    create_topic(tmp_path, TOPIC, 4)
    assert describe_topic(tmp_path, TOPIC) == (topic_id, 4)
    with pytest.raises(MendableError, match="at least the 4 partitions"):
        create_topic(tmp_path, TOPIC, 3)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a b", "x" * 250])
def test_a_topics_name_is_one_that_kafka_would_take(tmp_path, name):
    with pytest.raises(MendableError, match="name of a topic"):
        create_topic(tmp_path, name)


def test_a_topic_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(MendableError, match="orders"):
        describe_topic(folder, "payments")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=12),
    st.integers(0, 61),
    st.integers(0, 3),
)
def test_the_first_offset_of_a_time_is_found_even_when_timestamps_are_not_in_order(
    appended, timestamp, deleted
):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        create_topic(folder, TOPIC)
        with Producer(folder, TOPIC, segment_bytes=200) as producer:
            for times in appended:
                producer.append_batch([b"x"] * len(times), timestamps=times)
        bases = sorted(int(path.stem) for path in (folder / TOPIC / "0").glob("*.log"))
        low = delete_before(folder, TOPIC, 0, bases[min(deleted, len(bases) - 1)])
        times = [at for batch in appended for at in batch]
        expected = next((n for n in range(low, len(times)) if times[n] >= timestamp), len(times))
        assert offset_at(folder, TOPIC, 0, timestamp) == expected


def test_old_segments_are_deleted_in_order_and_a_reader_that_needs_them_is_told(folder):
    produce(folder, [b"%d" % n for n in range(10)])
    slow = Reader(folder, TOPIC, 0, 0)
    assert len(events_of(TOPIC, slow.read())) == 10
    with Producer(folder, TOPIC, segment_bytes=300) as producer:
        for number in range(10, 200):
            producer.append(None, b"%d" % number)
    low = delete_before(folder, TOPIC, 0, 100)
    assert 90 < low <= 100
    assert watermarks(folder, TOPIC, 0) == (low, 200)
    assert values_of(read_all(folder, offset=low)) == [b"%d" % n for n in range(low, 200)]
    with pytest.raises(Gap) as caught:
        Reader(folder, TOPIC, 0, 5).read()
    assert (caught.value.expected, caught.value.available) == (5, low)
    read = 10 + len(events_of(TOPIC, slow.read()))  # its file is deleted, but still open
    assert 10 < read < low
    with pytest.raises(Gap) as caught:
        slow.read()
    assert (caught.value.expected, caught.value.available) == (read, low)


def test_a_segment_that_is_missing_in_the_middle_is_a_gap(folder):
    with Producer(folder, TOPIC, segment_bytes=1) as producer:
        for number in range(4):
            producer.append(None, b"%d" % number)
    (folder / TOPIC / "0" / f"{2:020d}.log").unlink()
    reader = Reader(folder, TOPIC, 0, 0)
    assert values_of(events_of(TOPIC, [*reader.read(), *reader.read()])) == [b"0", b"1"]
    with pytest.raises(Gap) as caught:
        reader.read()
    assert (caught.value.expected, caught.value.available) == (2, 3)


def test_an_offset_beyond_the_end_is_a_gap(folder):
    produce(folder, [b"a", b"b"])
    assert Reader(folder, TOPIC, 0, 2).read() == []
    for offset in (3, 100):
        with pytest.raises(Gap) as caught:
            Reader(folder, TOPIC, 0, offset).read()
        assert (caught.value.expected, caught.value.available) == (offset, 0)


def test_what_is_erased_leaves_its_offset_and_every_other_event_as_it_was(tmp_path):
    from orchestration.connectors.event_log import erase

    create_topic(tmp_path, "paid", 2)
    with Producer(tmp_path, "paid", segment_bytes=200) as producer:
        for number in range(60):
            value = b'{"customer_id": %d}' % (number % 7)
            producer.append_batch([value, value], [b"a", b"k%d" % number], [number, number])
    before = _all_of(tmp_path)
    gone = b'{"customer_id": 3}'
    assert erase(tmp_path, "paid", lambda value: value == gone) == 18
    after = _all_of(tmp_path)
    assert after == [e._replace(key=None, value=None) if e.value == gone else e for e in before]
    assert erase(tmp_path, "paid", lambda value: value == gone) == 0
    assert not any(gone in file.read_bytes() for file in tmp_path.rglob("*.log"))


def _all_of(folder):
    found = []
    for partition in range(2):
        reader = Reader(folder, "paid", partition, 0)
        while slices := reader.read():
            found += events_of("paid", slices)
        reader.close()
    return found
