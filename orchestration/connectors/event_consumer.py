"""The consumers of a topic: one place for where it stands, what is missing and new partitions.

A loop of its own, such as the one that scores events, takes `open_consumer(topic)`, begins with
`start(position)` and then calls `poll` again and again; `position` is what to store.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestration.connectors import Position, event_log
from orchestration.connectors.event_log import Event, Gap
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.event_stream import EventTopic

TIMEOUT_SECONDS = 30
"""How long a broker may take to answer, and how long a drain may come no further."""
PARTITION_SECONDS = 10.0
"""How often a consumer looks for new partitions."""
POLL_SECONDS = 0.2
TOPIC_ID = "topic_id"

Described = tuple[str, list[int]]
"""A topic's id (empty if it has none) and its partitions."""

_MADE_ANEW = " was deleted and made anew; what of the old one was not loaded yet is lost"
_NAP_SECONDS = (0.000_25, 0.002)
_log = logging.getLogger(__name__)


def open_consumer(source: EventTopic) -> Consumer:
    """The consumer of a topic.

    Raises:
        MendableError: the URL or an option is not of the expected form.
    """
    if source.url.startswith("log://"):
        return LogConsumer(source)
    from orchestration.connectors.event_kafka import KafkaConsumer

    return KafkaConsumer(source)


class Consumer(ABC):
    """Reads one topic from a position on. Not for several threads; close it, or use it in `with`.

    Attributes:
        gaps: what `accept_gap` accepted, in words.
        first_time: nothing is read that may have been read before. Only a topic that was cut short
            or made anew, and accepted so, makes it false.
        trouble: what the source last complained of; empty if of nothing.
    """

    def __init__(self, source: EventTopic) -> None:
        self.source = source
        self.gaps: list[str] = []
        self.first_time = True
        self.trouble = ""
        self._topic_id = ""
        self._next: dict[int, int] = {}
        self._looked = 0.0
        self._asked: Callable[[], Described | None] | None = None

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> Position:
        """Where the topic stands after the events that were returned."""
        position: Position = {str(p): offset for p, offset in sorted(self._next.items())}
        return position | ({TOPIC_ID: self._topic_id} if self._topic_id else {})

    def start(self, position: Position) -> None:
        """Begin at a position.

        Raises:
            SourceUnavailableError: the broker does not answer, or refuses the login.
            MendableError: events after the position are gone, or the topic is.
        """
        partitions, known = self._meet(position)
        self._go_to(self._available({p: known.get(p, 0 if known else None) for p in partitions}))

    def start_again(self, position: Position, since: int | None) -> dict[int, int]:
        """Begin at the first event of `since` (ms) or later, to read up to a position.

        Returns:
            Per partition the offset to stop before.

        Raises:
            SourceUnavailableError: the broker does not answer, or refuses the login.
            MendableError: events since then may be gone, or the topic is.
        """
        partitions, known = self._meet(position)
        starts = (
            dict.fromkeys(partitions, 0) if since is None else self._offsets_at(partitions, since)
        )
        for partition, (low, _) in self._watermarks(partitions).items():
            if since is not None and starts[partition] <= low and 0 < low < known.get(partition, 0):
                self._gap(
                    f"/{partition} lost what was before offset {low:,}, perhaps some of the span"
                )
            starts[partition] = max(starts[partition], low)
        self._refuse_gaps()
        self._looked = float("inf")  # partitions that are new were not read before
        self._go_to({p: at for p, at in starts.items() if at < known.get(p, 0)})
        return known

    def poll(self, most: int = 500, wait_seconds: float = POLL_SECONDS) -> list[Event]:
        """The next events, at once if there are any; none if none has come after `wait_seconds`.

        Raises:
            SourceUnavailableError: the broker refuses the login.
            MendableError: events are gone at the source, or the topic is.
        """
        self._look_for_partitions()
        return self._events(most, wait_seconds)

    def poll_table(self, most: int, wait_seconds: float = POLL_SECONDS) -> pa.Table:
        """Like `poll`, in columns: partition, offset, timestamp (ms), key, value."""
        self._look_for_partitions()
        return self._table(most, wait_seconds)

    def watermarks(self) -> dict[int, tuple[int, int]]:
        """Per partition the first offset that can be read, and where it ends."""
        return self._watermarks(list(self._next))

    def reached(self, ends: Mapping[int, int]) -> bool:
        """Whether every partition has come to its offset in `ends`, or to where it now ends."""
        return all(at >= ends.get(p, 0) or self._is_at_end(p) for p, at in self._next.items())

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and files."""

    @abstractmethod
    def _describe(self) -> Described: ...

    @abstractmethod
    def _ask(self) -> Callable[[], Described | None]:
        """Like `_describe`, but what is returned has the answer once it is there: nobody waits for it."""

    @abstractmethod
    def _watermarks(self, partitions: list[int]) -> dict[int, tuple[int, int]]: ...

    @abstractmethod
    def _offsets_at(self, partitions: list[int], timestamp: int) -> dict[int, int]:
        """Per partition the first offset of that time (ms) or later; the end if there is none."""

    @abstractmethod
    def _go_to(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on, and the others as before."""

    @abstractmethod
    def _events(self, most: int, wait_seconds: float) -> list[Event]: ...

    @abstractmethod
    def _table(self, most: int, wait_seconds: float) -> pa.Table: ...

    def _is_at_end(self, partition: int) -> bool:
        return False

    def _meet(self, position: Position) -> tuple[list[int], dict[int, int]]:
        """The topic's partitions, and where they stood; nowhere if the topic was made anew."""
        self._topic_id, partitions = self._describe()
        self._looked = time.monotonic()
        known = {int(name): offset for name, offset in position.items() if name != TOPIC_ID}
        same = position.get(TOPIC_ID, self._topic_id) == self._topic_id
        if not (same and known.keys() <= set(partitions)):
            self._gap(_MADE_ANEW)
            self.first_time, known = False, {}
        return partitions, known

    def _look_for_partitions(self) -> None:
        if self._asked is None:
            if time.monotonic() - self._looked < PARTITION_SECONDS:
                return
            self._looked = time.monotonic()
            self._asked = self._ask()
        try:
            described = self._asked()
        except SourceUnavailableError:
            self._asked = None
            return  # its partitions can be looked for when it is back
        if described is None:
            return
        self._asked, (topic_id, partitions) = None, described
        if topic_id != self._topic_id:
            self._gap(_MADE_ANEW)
            raise self._gap_error()
        if new := [partition for partition in partitions if partition not in self._next]:
            self._go_to(self._available(dict.fromkeys(new, 0)))

    def _available(self, expected: Mapping[int, int | None]) -> dict[int, int]:
        """Where to go on: at what is expected (None: the first), or after a gap that is accepted."""
        starts = {}
        for partition, (low, end) in self._watermarks(list(expected)).items():
            at = expected[partition]
            starts[partition] = low if at is None or not low <= at <= end else at
            if at is not None and at < low:
                self._lost(partition, at, low)
            elif at is not None and at > end:
                self.first_time = False
                self._gap(
                    f"/{partition} ends at {end:,} before the expected offset {at:,}: cut short"
                )
        self._refuse_gaps()
        return starts

    def _lost(self, partition: int, expected: int, available: int) -> None:
        self._gap(
            f"/{partition} lost {available - expected:,} events: offset {expected:,} was expected,"
            f" {available:,} is the first available"
        )

    def _gap(self, said: str) -> None:
        said = f"{self.source.topic}{said}"
        _log.warning("%s", said)
        self.gaps.append(said)

    def _refuse_gaps(self) -> None:
        if self.gaps and not self.source.accept_gap:
            raise self._gap_error()

    def _gap_error(self) -> MendableError:
        return MendableError(
            self.source.name,
            expected="every event since the last load",
            arrived="; ".join(self.gaps),
            mend="keep events longer at the source than the time between loads; to go on with what is"
            f" left: watershed reload {self.source.system}.{self.source.table} --accept-gap",
        )


class LogConsumer(Consumer):
    """Reads the log on disk."""

    def __init__(self, source: EventTopic) -> None:
        super().__init__(source)
        self._folder = event_log.folder_of(source.url)
        self._readers: dict[int, event_log.Reader] = {}
        self._waiting: deque[event_log.Slice] = deque()

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()

    def _describe(self) -> Described:
        topic_id, partitions = event_log.describe_topic(self._folder, self.source.topic)
        return topic_id, list(range(partitions))

    def _ask(self) -> Callable[[], Described | None]:
        return self._describe  # a look into a folder

    def _watermarks(self, partitions: list[int]) -> dict[int, tuple[int, int]]:
        return {p: event_log.watermarks(self._folder, self.source.topic, p) for p in partitions}

    def _offsets_at(self, partitions: list[int], timestamp: int) -> dict[int, int]:
        topic = self.source.topic
        return {p: event_log.offset_at(self._folder, topic, p, timestamp) for p in partitions}

    def _go_to(self, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            if partition in self._readers:
                self._readers.pop(partition).close()
            topic = self.source.topic
            self._readers[partition] = event_log.Reader(self._folder, topic, partition, offset)
            self._next[partition] = offset

    def _events(self, most: int, wait_seconds: float) -> list[Event]:
        return event_log.events_of(self.source.topic, self._take(most, wait_seconds))

    def _table(self, most: int, wait_seconds: float) -> pa.Table:
        return event_log.table_of(self._take(most, wait_seconds))

    def _take(self, most: int, wait_seconds: float) -> list[event_log.Slice]:
        """At most so many events; naps while there are none, for a file tells nobody that it grew."""
        until = time.monotonic() + wait_seconds
        nap, longest = _NAP_SECONDS
        self._read()
        while not self._waiting and (left := until - time.monotonic()) > 0:
            time.sleep(min(nap, left))
            nap = min(nap * 1.5, longest)
            self._read()
        taken = []
        while self._waiting and most > 0:
            piece = self._waiting.popleft()
            if piece.stop - piece.start > most:
                self._waiting.appendleft(piece._replace(start=piece.start + most))
                piece = piece._replace(stop=piece.start + most)
            most -= piece.stop - piece.start
            self._next[piece.partition] = piece.base + piece.stop
            taken.append(piece)
        return taken

    def _read(self) -> None:
        """Read on in one partition after the other, until some have given `READ_BYTES`."""
        size = 0
        for partition in [] if self._waiting else list(self._readers):
            self._readers[partition] = self._readers.pop(partition)  # the last one next time
            try:
                slices = self._readers[partition].read()
            except Gap as gap:
                if gap.available > gap.expected:
                    self._lost(partition, gap.expected, gap.available)
                    self._refuse_gaps()
                    self._go_to({partition: gap.available})
                else:
                    self._go_to(self._available({partition: gap.expected}))
                continue
            self._waiting += slices
            size += sum(len(piece.body) for piece in slices)
            if size >= event_log.READ_BYTES:
                return
