"""An append-only event log on disk with Kafka's meaning of topic, partition and offset; needs no server.

    <folder>/<topic>/topic.json                              its id, its number of partitions
    <folder>/<topic>/<partition>/<offset, 20 digits>.log     a segment, named by its first offset

A segment is a run of frames; a frame is what one append wrote: a header with its length, first
offset, number of events and latest timestamp, then in columns timestamps, ends, nulls, keys, values.
Header and columns have a CRC each, which tells an append that a crash cut short (never served, cut off
when a producer next opens the log) from damage (an error that names the byte). Old segments may be
deleted, in order; a reader that still wanted them gets a `Gap`.

One producer writes to a partition at a time (a file lock); any number of readers follow it. What
`append` has returned outlives the death of the process; with `fsync=True` that of the machine too.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
import uuid
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT_BYTES = 32 << 20
FRAME_BYTES = 8 << 20
"""A frame is closed when it holds this much; only a single event may be larger."""
READ_BYTES = 4 << 20

# CRC of the body, its bytes, first offset, number of events, latest timestamp, CRC of these.
_FRAME = struct.Struct("<IIqIqI")
_NO_KEY, _NO_VALUE = 1, 2


class Event(NamedTuple):
    """An event as it stands in a topic. `timestamp` is in ms since 1970 UTC, None if it has none."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None


class Gap(Exception):
    """The event at `expected` was deleted, or was never there; one that is stands at `available`."""

    def __init__(self, expected: int, available: int) -> None:
        self.expected, self.available = expected, available
        super().__init__(f"offset {expected} is not there, but {available} is")


class NoTopicError(MendableError):
    """There is no topic of that name where others may be."""


class Slice(NamedTuple):
    """Neighbouring events of one frame: from number `start` to before `stop` of its `size`."""

    partition: int
    base: int
    size: int
    body: memoryview
    start: int
    stop: int


def folder_of(url: str) -> Path:
    """The folder of topics that `log:///path/to/folder` names."""
    return Path(unquote(url.removeprefix("log://")))


def create_topic(folder: Path, topic: str, partitions: int | None = None) -> None:
    """Make a topic, of one partition if none are said, or give one that exists more partitions.

    Raises:
        MendableError: the name is not one that Kafka would take, or partitions would be lost.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in (".", ".."):
        raise MendableError(
            "the name of a topic",
            expected="1 to 249 letters, digits, dots, underscores and hyphens",
            arrived="another text",
            mend="choose a name that Kafka would take as well",
        )
    about = folder / topic / "topic.json"
    about.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(about.read_text()) if about.exists() else {"topic_id": uuid.uuid4().hex}
    if partitions is None:
        if about.exists():
            return
        partitions = 1
    if partitions < known.get("partitions", 1):
        raise MendableError(
            f"topic {topic} in {folder}",
            expected=f"at least the {known['partitions']} partitions that it has",
            arrived=str(partitions),
            mend="a topic can only get more partitions; make another topic for fewer",
        )
    unfinished = about.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(known | {"partitions": partitions}))
    unfinished.rename(about)


def describe_topic(folder: Path, topic: str) -> tuple[str, int]:
    """The topic's id, which no other topic of the same name will have, and its number of partitions.

    Raises:
        NoTopicError: the folder has no such topic.
        MendableError: there is no such folder.
    """
    try:
        about = json.loads((folder / topic / "topic.json").read_text())
    except FileNotFoundError:
        topics = sorted(path.parent.name for path in folder.glob("*/topic.json"))[:20]
        kind = NoTopicError if folder.is_dir() else MendableError
        raise kind(
            f"topic {topic} in {folder}",
            expected="a topic of that name",
            arrived=f"a folder with {', '.join(topics) or 'no topics'}",
            mend="start its producer first, or check the folder and the name",
        ) from None
    return about["topic_id"], about["partitions"]


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, the one to which librdkafka (confluent-kafka) sends it by default."""
    return zlib.crc32(key) % partitions


def watermarks(folder: Path, topic: str, partition: int) -> tuple[int, int]:
    """The first offset that can be read, and the one that the next event will get.

    Raises:
        MendableError: the log is damaged.
    """
    place = folder / topic / str(partition)
    bases = _bases(place)
    if not bases:
        return 0, 0
    path = _path(place, bases[-1])
    last = deque(_frames(path.read_bytes(), path), maxlen=1)
    return bases[0], last[0].base + last[0].size if last else bases[-1]


def offset_at(folder: Path, topic: str, partition: int, timestamp: int) -> int:
    """The first offset whose event is of `timestamp` (ms) or later; the end if there is none.

    Raises:
        MendableError: the log is damaged.
    """
    place = folder / topic / str(partition)
    for path in (_path(place, base) for base in _bases(place)):
        data = path.read_bytes()
        for frame in _frames(data, path):
            if frame.latest >= timestamp:
                times = memoryview(data)[frame.body : frame.body + 8 * frame.size].cast("q")
                return frame.base + next(n for n, at in enumerate(times) if at >= timestamp)
    return watermarks(folder, topic, partition)[1]


def delete_before(folder: Path, topic: str, partition: int, offset: int) -> int:
    """Delete the segments that hold nothing from `offset` on; the first offset that is left.

    The last segment stays, so that the log knows where it ends.
    """
    place = folder / topic / str(partition)
    bases = _bases(place)
    while len(bases) > 1 and bases[1] <= offset:
        _path(place, bases.pop(0)).unlink(missing_ok=True)
    return bases[0] if bases else 0


def erase(folder: Path, topic: str, values: Callable[[bytes], bool]) -> int:
    """Leave nothing of the events whose value is one to erase but their offset and time; how many.

    A segment is written anew and takes its place at once, so a crash leaves one or the other.

    Raises:
        MendableError: a producer writes to the topic, or the log is damaged.
    """
    erased = 0
    for partition in range(describe_topic(folder, topic)[1]):
        place = folder / topic / str(partition)
        if not _bases(place):
            continue
        writer = _Writer(place, True, SEGMENT_BYTES)
        try:
            for path in (_path(place, base) for base in _bases(place)):
                data, frames, here = path.read_bytes(), [], 0
                for frame in _frames(data, path):
                    body = memoryview(data)[frame.body : frame.end]
                    whole = Slice(partition, frame.base, frame.size, body, 0, frame.size)
                    events = events_of(topic, [whole])
                    out = [e.value is not None and values(e.value) for e in events]
                    here += sum(out)
                    frames.append(
                        _framed(
                            frame.base,
                            body[: 8 * frame.size].cast("q").tolist(),
                            [None if o else e.key for o, e in zip(out, events, strict=True)],
                            [None if o else e.value for o, e in zip(out, events, strict=True)],
                        )
                    )
                if here:
                    unfinished = path.with_suffix(".unfinished")
                    with unfinished.open("wb") as file:
                        file.write(b"".join(frames))
                        file.flush()
                        os.fsync(file.fileno())
                    unfinished.rename(path)
                    _sync(place)
                erased += here
        finally:
            writer.close()
    return erased


class Producer:
    """Appends events to a topic; the only one that writes to its partitions while it is open.

    Args:
        folder: the folder of topics.
        topic: one that `create_topic` made.
        fsync: whether an append waits until the disk holds it.
        segment_bytes: a segment is closed when it holds this much; what is deleted is deleted by
            whole segments.
    """

    def __init__(
        self, folder: Path, topic: str, *, fsync: bool = False, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._place, self._fsync, self._segment_bytes = folder / topic, fsync, segment_bytes
        self._partitions = describe_topic(folder, topic)[1]
        self._writers: dict[int, _Writer] = {}
        self._turn = 0

    def append(
        self, key: bytes | None, value: bytes | None, timestamp: int | None = None
    ) -> tuple[int, int]:
        """Append one event; its partition and offset.

        Args:
            key: events of equal keys go to the same partition; None to any.
            value: the event; None is Kafka's tombstone.
            timestamp: ms since 1970 UTC; None is now.

        Raises:
            MendableError: another producer writes to the partition, or the log is damaged.
        """
        written = self.append_batch([value], [key], None if timestamp is None else [timestamp])
        ((partition, offsets),) = written.items()
        return partition, offsets.start

    def append_batch(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        timestamps: Sequence[int] | None = None,
    ) -> dict[int, range]:
        """Append many events, in their order within each partition; per partition their offsets.

        Those without a key all go to one partition, and those of the next batch to another.
        """
        keys = [None] * len(values) if keys is None else keys
        if timestamps is None:
            timestamps = [time.time_ns() // 1_000_000] * len(values)
        self._turn = (self._turn + 1) % self._partitions
        events: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            into = self._turn if key is None else partition_of(key, self._partitions)
            events.setdefault(into, []).append(number)
        written = {}
        for partition, numbers in events.items():
            if partition not in self._writers:
                place = self._place / str(partition)
                self._writers[partition] = _Writer(place, self._fsync, self._segment_bytes)
            first = self._writers[partition].append(
                [timestamps[number] for number in numbers],
                [keys[number] for number in numbers],
                [values[number] for number in numbers],
            )
            written[partition] = range(first, first + len(numbers))
        return written

    def close(self) -> None:
        """Let others write. Needed for nothing else: what was appended is in the log."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader:
    """Reads one partition forward from an offset, also while it grows. Not for several threads."""

    def __init__(self, folder: Path, topic: str, partition: int, offset: int) -> None:
        self.partition, self.offset = partition, offset
        self._place = folder / topic / str(partition)
        self._path: Path | None = None
        self._file = self._at = 0
        self._listed = 0.0

    def read(self, most_bytes: int = READ_BYTES) -> list[Slice]:
        """The next events, about `most_bytes` of them; none when there are none yet.

        Raises:
            Gap: the next event was deleted, or the offset never was in the log.
            MendableError: the next event is damaged.
        """
        if self._path is None or self._is_over():
            self._find()
        if self._path is None:
            return []
        data = os.pread(self._file, max(most_bytes, _FRAME.size), self._at)
        if len(data) >= _FRAME.size and _FRAME.unpack_from(data)[1] > len(data) - _FRAME.size:
            whole = _FRAME.size + _FRAME.unpack_from(data)[1]
            data = os.pread(self._file, min(whole, os.fstat(self._file).st_size), self._at)
        view, begin, slices = memoryview(data), self._at, []
        try:
            for frame in _frames(data, self._path, begin):
                body, start = view[frame.body : frame.end], self.offset - frame.base
                if zlib.crc32(body) != frame.crc:
                    raise _damage(self._path, self._at)
                slices.append(
                    Slice(self.partition, frame.base, frame.size, body, start, frame.size)
                )
                self.offset, self._at = frame.base + frame.size, begin + frame.end
        except MendableError:
            if not slices:  # what came before the damage comes first
                raise
        return slices

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            os.close(self._file)
            self._path = None

    def _is_over(self) -> bool:
        """Whether the segment is read to its end, and the next event is to be sought elsewhere."""
        about = os.fstat(self._file)
        if self._at < about.st_size:
            return False
        following = _path(self._place, self.offset)
        if following != self._path and following.exists():
            return True
        # Now and then, whether segments are missing here or were deleted.
        if time.monotonic() - self._listed < 1:
            return False
        self._listed = time.monotonic()
        later = max(_bases(self._place), default=0) > self.offset
        return later or about.st_nlink == 0 or about.st_size < self._at

    def _find(self) -> None:
        """Open the segment in which the offset is."""
        self.close()
        bases, offset = _bases(self._place), self.offset
        base = max((base for base in bases if base <= offset), default=None)
        if base is None and (bases or offset):
            raise Gap(offset, bases[0] if bases else 0)
        if base is None:
            return
        path = _path(self._place, base)
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # deleted this moment
            return self._find()
        self._path, self._at = path, 0
        if base == offset:
            return
        for frame in _frames(path.read_bytes(), path):
            if frame.base <= offset < frame.base + frame.size:
                return
            self._at = frame.end
            if frame.base + frame.size == offset and base == bases[-1]:
                return
        self.close()
        raise Gap(offset, min((b for b in bases if b > offset), default=bases[0]))


def events_of(topic: str, slices: Iterable[Slice]) -> list[Event]:
    """The events one by one."""
    events: list[Event] = []
    for partition, base, size, body, start, stop in slices:
        times = body[8 * start : 8 * stop].cast("q").tolist()
        ends = body[8 * size : 16 * size + 4].cast("i").tolist()
        nulls = body[16 * size + 4 + start : 16 * size + 4 + stop]
        data = body[17 * size + 4 :].tobytes()
        keys, values = (
            [
                None if null & missing else data[a:b]
                for null, (a, b) in zip(
                    nulls, pairwise(ends[first : first + stop - start + 1]), strict=True
                )
            ]
            for missing, first in ((_NO_KEY, start), (_NO_VALUE, size + start))
        )
        offsets = range(base + start, base + stop)
        events += map(Event, repeat(topic), repeat(partition), offsets, times, keys, values)
    return events


def in_columns(events: Sequence[Event]) -> pa.Table:
    """Events as a table: partition, offset, timestamp (ms), key, value."""
    import pyarrow as pa

    fields = ("partition", "offset", "timestamp", "key", "value")
    kinds = (pa.int32(), pa.int64(), pa.int64(), pa.binary(), pa.binary())
    columns = [[event[number] for event in events] for number in range(1, 6)]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(dict(zip(fields, arrays, strict=True)))


def table_of(slices: Sequence[Slice]) -> pa.Table:
    """The same of slices; those of some length are not taken apart."""
    import numpy as np
    import pyarrow as pa

    nothing = in_columns([])
    if sum(piece.stop - piece.start for piece in slices) < 32 * len(slices):
        return in_columns(events_of("", slices))

    def texts(piece: Slice, first: int, missing: int) -> pa.Array:
        _, _, size, body, start, stop = piece
        at = 8 * size + 4 * (first + start)
        ends = np.frombuffer(body[at : at + 4 * (stop - start) + 4], "<i4").copy()
        nulls = np.frombuffer(body[16 * size + 4 + start : 16 * size + 4 + stop], np.uint8)
        valid = pa.py_buffer(np.packbits(nulls & missing == 0, bitorder="little"))
        buffers = [valid, pa.py_buffer(ends), pa.py_buffer(body[17 * size + 4 :])]
        return pa.Array.from_buffers(pa.binary(), stop - start, buffers)

    batches = [
        pa.record_batch(
            [
                np.full(piece.stop - piece.start, piece.partition, np.int32),
                np.arange(piece.base + piece.start, piece.base + piece.stop),
                np.frombuffer(piece.body[8 * piece.start : 8 * piece.stop], "<i8"),
                texts(piece, 0, _NO_KEY),
                texts(piece, piece.size, _NO_VALUE),
            ],
            nothing.schema,
        )
        for piece in slices
    ]
    return pa.Table.from_batches(batches, nothing.schema)


class _Frame(NamedTuple):
    """A frame in bytes that were read, its body from `body` to before `end`."""

    body: int
    end: int
    crc: int
    base: int
    size: int
    latest: int


def _frames(data: bytes, path: Path, begin: int = 0) -> Iterator[_Frame]:
    """The whole frames with which `data` begins, which was read from byte `begin` of a segment.

    What follows them is a frame that is still being written, or that a crash cut short.

    Raises:
        MendableError: damage.
    """
    at = 0
    while at + _FRAME.size <= len(data):
        crc, length, base, size, latest, header_crc = _FRAME.unpack_from(data, at)
        header = data[at : at + _FRAME.size]
        if header == bytes(_FRAME.size):  # a file that had grown when the power went
            return
        if zlib.crc32(header[:-4]) != header_crc:
            raise _damage(path, begin + at)
        body, at = at + _FRAME.size, at + _FRAME.size + length
        if at <= len(data):
            yield _Frame(body, at, crc, base, size, latest)


class _Writer:
    """Appends to one partition, which it keeps locked."""

    def __init__(self, place: Path, fsync: bool, segment_bytes: int) -> None:
        from filelock import FileLock, Timeout

        self._place, self._fsync, self._segment_bytes = place, fsync, segment_bytes
        self._offset = self._size = 0
        place.mkdir(exist_ok=True)
        self._lock = FileLock(place / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise MendableError(
                f"the event log's partition {place}",
                expected="one producer at a time",
                arrived="another producer that writes to it",
                mend="stop the other one, or write to another topic",
            ) from None
        try:
            self._find_end()
        except BaseException:
            self._lock.release()
            raise

    def append(
        self, timestamps: list[int], keys: list[bytes | None], values: list[bytes | None]
    ) -> int:
        """Append events; the offset of the first. Of an append that fails no half frame is left."""
        first = self._offset
        try:
            self._append(timestamps, keys, values)
            if self._fsync:
                os.fdatasync(self._file)
        except BaseException:
            os.ftruncate(self._file, self._size)
            raise
        return first

    def close(self) -> None:
        os.close(self._file)
        self._lock.release()

    def _append(
        self, timestamps: list[int], keys: list[bytes | None], values: list[bytes | None]
    ) -> None:
        size = len(values)
        texts = [text or b"" for text in (*keys, *values)]
        if sum(map(len, texts)) > FRAME_BYTES and size > 1:
            for half in (slice(0, size // 2), slice(size // 2, size)):
                self._append(timestamps[half], keys[half], values[half])
            return
        if self._size >= self._segment_bytes:
            if self._fsync:
                os.fdatasync(self._file)
            os.close(self._file)
            self._open_segment(self._offset)
            self._size = 0
        frame, written = memoryview(_framed(self._offset, timestamps, keys, values)), 0
        while written < len(frame):
            written += os.pwrite(self._file, frame[written:], self._size + written)
        self._size += len(frame)
        self._offset += size

    def _find_end(self) -> None:
        """Find the end of the log, and cut off what a crash left of an append behind it."""
        self._offset = max(_bases(self._place), default=0)
        path = self._open_segment(self._offset)
        data, last = path.read_bytes(), None
        for last in _frames(data, path):
            self._offset, self._size = last.base + last.size, last.end
        if last and zlib.crc32(data[last.body : last.end]) != last.crc:
            raise _damage(path, last.body - _FRAME.size)
        os.ftruncate(self._file, self._size)

    def _open_segment(self, base: int) -> Path:
        path = _path(self._place, base)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        if self._fsync:
            _sync(self._place)
        return path


def _framed(
    base: int,
    timestamps: Sequence[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
) -> bytes:
    texts = [text or b"" for text in (*keys, *values)]
    ends = array("i", accumulate(map(len, texts), initial=0))
    nulls = bytes([(k is None) + 2 * (v is None) for k, v in zip(keys, values, strict=True)])
    body = b"".join([array("q", timestamps).tobytes(), ends.tobytes(), nulls, *texts])
    header = _FRAME.pack(zlib.crc32(body), len(body), base, len(values), max(timestamps), 0)
    return header[:-4] + zlib.crc32(header[:-4]).to_bytes(4, "little") + body


def _damage(path: Path, at: int) -> MendableError:
    return MendableError(
        f"the event log's file {path}",
        expected="frames that fit their checksums",
        arrived=f"damage at byte {at:,}",
        mend="put the file back from a copy, or delete it: then its events are a gap;"
        f" at the end of a log `truncate -s {at} '{path}'` gives up what follows",
    )


def _bases(place: Path) -> list[int]:
    """The first offsets of a partition's segments, in order."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-4]) for name in names if name.endswith(".log"))


def _path(place: Path, base: int) -> Path:
    return place / f"{base:020d}.log"


def _sync(folder: Path) -> None:
    """Make sure that the names in a folder outlive a power cut."""
    file = os.open(folder, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
