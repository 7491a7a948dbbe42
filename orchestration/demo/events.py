"""How the demo writes tables as JSON events into topics of the embedded log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.connectors.event_log import Producer, create_topic, watermarks

if TYPE_CHECKING:
    import pyarrow as pa

EVENTS_AT_ONCE = 10_000


def json_objects(table: pa.Table) -> list[bytes]:
    """A JSON object per row; numbers and booleans as they are, times with a Z, texts between quotes.

    Args:
        table: its texts hold nothing that JSON would escape, its times whole seconds, no nulls.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    parts: list[object] = []
    for name in table.column_names:
        parts.append(f'{"," if parts else "{"}"{name}":')
        column = table[name]
        if pa.types.is_timestamp(column.type):
            column = pc.strftime(column.cast(pa.timestamp("s")), '"%Y-%m-%dT%H:%M:%SZ"')
        elif pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
            column = pc.binary_join_element_wise('"', column.cast(pa.string()), '"', "")
        parts.append(column.cast(pa.string()).combine_chunks())
    joined = pc.binary_join_element_wise(*parts, "}", "")
    values: list[bytes] = joined.cast(pa.binary()).to_pylist()
    return values


def fill_topic(
    stream: Path,
    topic: str,
    events: pa.Table,
    keys: pa.ChunkedArray,
    times: pa.ChunkedArray,
    progress: Callable[[str], None],
) -> int:
    """Append the events that the topic's one partition does not hold yet; how many those were.

    Args:
        stream: the folder of topics.
        topic: its name; it is created if there is none.
        events: a row per event, as `json_objects` takes them.
        keys: a key per event.
        times: when each came (timestamp).
        progress: told how far it is.
    """
    import pyarrow as pa

    create_topic(stream, topic)
    there, total = watermarks(stream, topic, 0)[1], events.num_rows
    with Producer(stream, topic) as producer:
        for first in range(there, total, EVENTS_AT_ONCE):
            part = (first, EVENTS_AT_ONCE)
            producer.append_batch(
                json_objects(events.slice(*part)),
                keys.slice(*part).cast(pa.string()).cast(pa.binary()).to_pylist(),
                times.slice(*part).cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist(),
            )
            done = min(first + EVENTS_AT_ONCE, total)
            if done % (10 * EVENTS_AT_ONCE) == 0 or total <= 10 * EVENTS_AT_ONCE:
                progress(f"topic {topic}: {done:,} of {total:,} events")
    return max(int(total) - there, 0)
