"""Reads events from a topic of Kafka (`kafka://`), or of the log on disk in event_log.py (`log://`).

Position: `{"<partition>": <offset of the next event>, ..., "topic_id": "<the topic's own id>"}`. It
stands in the warehouse and nowhere else: nothing is committed to the broker, and partitions are
assigned by hand. So two loaders at once are fenced by landing, when it compares and sets the
position, and there is no rebalance.

- Every event that was committed comes exactly once, in offset order within its partition: as a row,
  or set aside with its reason, its bytes and its place. Aborted transactions, control records and
  what compaction removed are holes between offsets. A row has the event's fields and its place,
  `<topic>/<partition>/<offset>`; the broker's key and timestamp are not among them.
- `{}` begins at the first event that is still there; a topic that nobody has made yet is an empty
  one, to which the batch's `where` owns up. From then on a new partition begins at 0, and what the
  source deleted before it was loaded is an error that counts the events, as is a topic that is gone,
  was cut short or made anew. `accept_gap` goes on after them, and says so in the batch's `where`.
- A span reads events again by the broker's timestamps, which need not be in order, as far as they
  were read before: later ones come in their turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from orchestration.connectors import (
    SOURCE_POSITION,
    Batch,
    Position,
    Span,
    address,
    rejected_rows,
)
from orchestration.connectors.event_avro import avro_decoder
from orchestration.connectors.event_consumer import (
    POLL_SECONDS,
    TIMEOUT_SECONDS,
    Consumer,
    open_consumer,
)
from orchestration.connectors.event_log import NoTopicError
from orchestration.connectors.json_rows import rows_of, typed_rows_of
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 70_000
BATCH_BYTES = 64 << 20

_POLL_ROWS = 20_000
_log = logging.getLogger(__name__)

Decoder = Callable[["pa.Array"], tuple["pa.Table", dict[int, str]]]
"""From events' bytes (Arrow, none null) to the rows of those that are one, in their order, and the
reasons for the others, by number."""


@dataclass(frozen=True)
class EventTopic:
    """A topic of events.

    Attributes:
        url: `kafka://host:port[,host:port]` or `log:///path/to/folder`. `user:password@` before the
            host means SASL over TLS; librdkafka's options may follow as a query.
        topic: the topic's name.
        system: the source system's short name, for errors.
        table: what the events are called in that system, for errors.
        url_setting: the setting that holds `url`, for errors.
        columns: those that every batch has, even if no event of it does; they come first.
        types: the SQL types that the columns' values are for, if known: JSON is then read faster.
        ignore: fields to leave out.
        decode: how events become rows; a name in `DECODERS`.
        avro_schema: path of the events' Avro schema; see event_avro.py.
        max_event_bytes: a larger event is set aside.
        options: more options of librdkafka, such as `ssl.ca.location`.
        accept_gap: go on after events that are gone at the source. For one run.
    """

    url: str = field(repr=False)
    topic: str
    system: str
    table: str
    url_setting: str
    columns: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    decode: str = "json"
    avro_schema: str = ""
    max_event_bytes: int = 1 << 20
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    accept_gap: bool = False

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.system}.{self.table} (topic {self.topic} at {address(self.url)})"


DECODERS: dict[str, Callable[[EventTopic], Decoder]] = {
    "json": lambda source: rows_of,
    "avro": lambda source: avro_decoder(source.avro_schema),
}
"""What `decode` may name. Another format, such as Protobuf, is one more function here."""


def read(
    source: EventTopic,
    position: Position,
    span: Span | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Batch]:
    """Read what came after `position`, up to where the topic ends now.

    Args:
        source: the topic.
        position: where the last read ended; `{}` to begin.
        span: read again what came between two times (ISO 8601, UTC unless they say otherwise).
        batch_rows: about the most rows in a batch.

    Raises:
        SourceUnavailableError: the broker does not answer, or refuses the login.
        MendableError: events are gone at the source, or the topic is.
    """
    make = BatchMaker(source)
    with open_consumer(source) as consumer:
        if span is not None:
            yield from _read_again(consumer, make, position, span, batch_rows)
            return
        try:
            consumer.start(position)
        except NoTopicError:
            if position:
                raise
            _log.warning("%s is not there yet", source.name)
            yield make([], position, where=f"topic {source.topic} is not there yet")
            return
        ends = {partition: end for partition, (_, end) in consumer.watermarks().items()}
        done = _caught_up(consumer, ends)
        yield from _in_turn(
            consumer, make, position, _gathered(consumer.poll_table, batch_rows, done)
        )


def follow(
    source: EventTopic,
    position: Position,
    *,
    batch_rows: int = BATCH_ROWS,
    max_wait_seconds: float = 1.0,
    stop: Callable[[], bool],
) -> Iterator[Batch]:
    """Read what comes after `position`, on and on, also across a broker's absence.

    Args:
        source: the topic.
        position: where the last read ended; `{}` to begin.
        batch_rows: about the most rows in a batch.
        max_wait_seconds: how long an event may wait for others to share its batch.
        stop: asked several times a second; once it says yes, a last batch holds what has come.

    Raises:
        SourceUnavailableError: the broker does not answer at the start, or refuses the login.
        MendableError: events are gone at the source, or the topic is.
    """
    make = BatchMaker(source)
    with open_consumer(source) as consumer:
        consumer.start(position)
        gathered = _gathered(consumer.poll_table, batch_rows, stop, max_wait_seconds)
        yield from _in_turn(consumer, make, position, gathered)


class BatchMaker:
    """Turns events into batches: rows, and what could not be decoded set aside.

    Raises:
        MendableError: the topic's `decode` or `avro_schema` is not fit.
    """

    def __init__(self, source: EventTopic) -> None:
        if source.decode not in DECODERS:
            raise MendableError(
                f"decode of {source.name}",
                expected=" or ".join(DECODERS),
                arrived=source.decode,
                mend=f"change it in orchestration/defs/raw/{source.system}/defs.yaml",
            )
        self._source = source
        self._decode = DECODERS[source.decode](source)

    def __call__(
        self,
        events: Sequence[pa.Table],
        position: Position,
        *,
        first_time: bool = True,
        where: str = "",
    ) -> Batch:
        """A batch of events in columns, as `poll_table` and `event_log.in_columns` give them."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if not events:
            return Batch(pa.table({}), position, where=where)
        source, table = self._source, pa.concat_tables(events)
        values = pa.concat_arrays(table["value"].chunks)
        names = [table[name].cast(pa.string()) for name in ("partition", "offset")]
        places = pc.binary_join_element_wise(source.topic, *names, "/")
        sizes = np.asarray(pc.binary_length(values).fill_null(-1))
        reasons = dict.fromkeys(np.flatnonzero(sizes < 0).tolist(), "no value (a tombstone)")
        for number in np.flatnonzero(sizes > source.max_event_bytes).tolist():
            reasons[number] = f"larger than {source.max_event_bytes:,} bytes"
        usable = np.delete(np.arange(len(values)), list(reasons))
        values_of_rows = values.take(usable) if reasons else values
        rows = typed_rows_of(values_of_rows, source.types) if source.decode == "json" else None
        is_typed, kept = rows is not None, usable
        if rows is None:
            rows, undecoded = self._decode(values_of_rows)
            reasons |= {int(usable[number]): reason for number, reason in undecoded.items()}
            kept = np.delete(usable, list(undecoded))
            if SOURCE_POSITION in rows.column_names:
                taken = np.flatnonzero(rows[SOURCE_POSITION].is_valid()).tolist()
                reasons |= {
                    int(kept[number]): f"a field {SOURCE_POSITION}, our own" for number in taken
                }
                others = np.delete(np.arange(len(kept)), taken)
                rows = rows.take(others).drop_columns([SOURCE_POSITION])
                kept = np.delete(kept, taken)
        at = sorted(reasons)
        return Batch(
            self._columns(rows, len(kept)).append_column(
                SOURCE_POSITION, places.take(kept) if reasons else places
            ),
            position,
            where=where,
            rejected=rejected_rows(
                [reasons[number] for number in at],
                values.take(at).to_pylist(),
                places.take(at).to_pylist(),
            )
            if reasons
            else None,
            first_time=first_time,
            as_text=partial(self._as_text, values_of_rows) if is_typed else None,
        )

    def _as_text(self, values: pa.Array, numbers: Sequence[int]) -> pa.Table:
        return self._columns(self._decode(values.take(numbers))[0], len(numbers))

    def _columns(self, rows: pa.Table, count: int) -> pa.Table:
        """The columns that every batch has, and what else came and is not to be left out."""
        import pyarrow as pa

        nothing, source = pa.nulls(count, pa.string()), self._source
        return pa.table(
            {
                name: rows[name] if name in rows.column_names else nothing
                for name in dict.fromkeys((*source.columns, *rows.column_names))
                if name not in source.ignore
            }
        )


def _gathered(
    poll: Callable[[int, float], pa.Table],
    batch_rows: int,
    done: Callable[[], bool],
    max_wait_seconds: float = float("inf"),
) -> Iterator[list[pa.Table]]:
    """What belongs into one batch, again and again until `done`."""
    held: list[pa.Table] = []
    rows = size = 0
    due = float("inf")
    while True:
        finished = done()
        full = rows >= batch_rows or size >= BATCH_BYTES or time.monotonic() >= due
        if held and (full or finished):
            yield held
            held, rows, size, due = [], 0, 0, float("inf")
        if finished:
            return
        wait = max(0.0, min(POLL_SECONDS, due - time.monotonic()))
        events = poll(max(1, min(_POLL_ROWS, batch_rows - rows)), wait)
        if events.num_rows:
            due = due if held else time.monotonic() + max_wait_seconds
            held.append(events)
            rows += events.num_rows
            size += events.nbytes


def _in_turn(
    consumer: Consumer, make: BatchMaker, landed: Position, gathered: Iterator[list[pa.Table]]
) -> Iterator[Batch]:
    """Batches with the position after them; an empty one if only the position moved."""
    for events in gathered:
        landed, where = consumer.position, "; ".join(consumer.gaps)
        consumer.gaps = []
        yield make(events, landed, first_time=consumer.first_time, where=where)
    if consumer.position != landed:
        yield make([], consumer.position, where="; ".join(consumer.gaps))


def _caught_up(consumer: Consumer, ends: Mapping[int, int]) -> Callable[[], bool]:
    """Whether the consumer has come to these ends; fails when it comes no further for too long."""
    before: Position = {}
    polls = 0

    def done() -> bool:
        nonlocal before, polls
        if consumer.reached(ends):
            return True
        polls = polls + 1 if consumer.position == before else 0
        before = consumer.position
        if polls * POLL_SECONDS > TIMEOUT_SECONDS:
            raise SourceUnavailableError(
                consumer.source.name,
                expected="its events up to where it ended when the load began",
                arrived=consumer.trouble or f"no event for {TIMEOUT_SECONDS} s",
                mend="nothing was lost: run the load again when the broker is well",
            )
        return False

    return done


def _read_again(
    consumer: Consumer, make: BatchMaker, position: Position, span: Span, batch_rows: int
) -> Iterator[Batch]:
    """The events of a span that were read before, at the position as it is."""
    import numpy as np

    start, end = (_milliseconds(consumer.source, text) for text in (span.start, span.end))
    ends = consumer.start_again(position, start)
    before = np.array([ends.get(partition, 0) for partition in range(max(ends, default=0) + 1)])

    def poll(most: int, wait_seconds: float) -> pa.Table:
        events = consumer.poll_table(most, wait_seconds)
        wanted = events["offset"].to_numpy() < before[events["partition"].to_numpy()]
        times = events["timestamp"].fill_null(0).to_numpy()
        wanted &= times >= start if start is not None else True
        wanted &= times < end if end is not None else True
        return events.filter(wanted)

    where = "; ".join(
        [f"events from {span.start or 'the first'} to {span.end or 'the last'}", *consumer.gaps]
    )
    for events in _gathered(poll, batch_rows, _caught_up(consumer, ends)):
        yield make(events, position, first_time=False, where=where)


def _milliseconds(source: EventTopic, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise MendableError(
            f"the span of {source.name}",
            expected="times such as 2026-01-31 or 2026-01-31T12:00:00Z",
            arrived="another text",
            mend="give the span's start and end as ISO 8601 times",
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
