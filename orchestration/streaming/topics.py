"""The topics of a stream, and how much of each has landed: what every use case asks when it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec

from orchestration.connectors import Position
from orchestration.connectors.event_consumer import open_consumer
from orchestration.connectors.event_stream import EventTopic
from orchestration.settings import Settings, variable
from orchestration.streaming.events import MOST_BYTES
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    import duckdb

_Message = TypeVar("_Message", bound=msgspec.Struct)


def topic_of(settings: Settings, stream: str, topic: str) -> EventTopic:
    """A topic of a stream whose setting is `<stream>_url`; what is gone from it has landed, so it is no error."""
    setting = f"{stream}_url"
    return EventTopic(
        url=settings.value_of(setting),
        topic=topic,
        system=stream,
        table=topic,
        url_setting=variable(setting),
        max_event_bytes=MOST_BYTES,
        accept_gap=True,
    )


def unlanded(source: EventTopic, position: Position, kind: type[_Message]) -> list[_Message]:
    """The messages of a topic from a position to its end; those that are not of this kind are left out.

    Raises:
        SourceUnavailableError: the broker does not answer.
    """
    found = []
    decode = msgspec.json.Decoder(kind).decode
    with open_consumer(source) as consumer:
        consumer.start(position)
        ends = {part: end for part, (_, end) in consumer.watermarks().items()}
        while not consumer.reached(ends):
            for event in consumer.poll(10_000, 0.2):
                try:
                    found.append(decode(event.value or b""))
                except msgspec.MsgspecError:
                    continue  # not one of ours: landing quarantines it
    return found


def landed_position(connection: duckdb.DuckDBPyConnection, table: str) -> Position:
    """How far a raw table's topic has landed; nowhere at first."""
    if not table_exists(connection, "landing", "positions"):
        return {}
    row = connection.execute(
        "select source_position from landing.positions where table_name = ?", [table]
    ).fetchone()
    return json.loads(row[0]) if row is not None and row[0] else {}


@contextmanager
def one_moment(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """The warehouse as it stands, for as long as the block runs.

    Raises:
        MendableError: the warehouse cannot be read.
    """
    connection = connect(settings, read_only=True)
    try:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("begin transaction")
        yield connection
    finally:
        connection.close()
