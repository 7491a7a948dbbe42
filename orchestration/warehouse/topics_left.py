"""What a broker still holds of a person: not ours to delete, so it is said where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestration.connectors.event_log import folder_of
from orchestration.settings import Settings

if TYPE_CHECKING:
    import duckdb

Ranges = dict[str, list[tuple[int, int, int]]]
"""Topic to partition, first and last offset of each run of neighbouring events."""

TABLE = """
    create schema if not exists landing;
    create table if not exists landing.left_in_topics (
        topic varchar, partition_number bigint, first_offset bigint, last_offset bigint
    );
"""
_PLACE = re.compile(r"(.+)/(\d+)/(\d+)")


def topics_on_disk(settings: Settings) -> dict[str, set[str]]:
    """Folder of each embedded event log to its topics."""
    found: dict[str, set[str]] = {}
    for name in type(settings).model_fields:
        url = settings.value_of(name) if name.endswith("_stream_url") else ""
        if url.startswith("log://"):
            folder = folder_of(url)
            topics = {about.parent.name for about in folder.glob("*/topic.json")}
            found.setdefault(str(folder), set()).update(topics)
    return found


def left_in_topics(settings: Settings, positions: Iterable[str]) -> Ranges:
    """The events of a broker among the positions `topic/partition/offset` of rows, in order.

    Other positions name files and requests; events of a log on disk are emptied there.
    """
    ours = set().union(*topics_on_disk(settings).values())
    offsets: dict[tuple[str, int], set[int]] = {}
    for position in positions:
        if (told := _PLACE.fullmatch(position)) and told[1] not in ours:
            offsets.setdefault((told[1], int(told[2])), set()).add(int(told[3]))
    found: Ranges = {}
    for (topic, partition), numbers in sorted(offsets.items()):
        runs = found.setdefault(topic, [])
        for number in sorted(numbers):
            if runs and runs[-1][0] == partition and runs[-1][2] == number - 1:
                runs[-1] = (partition, runs[-1][1], number)
            else:
                runs.append((partition, number, number))
    return found


def write_down(connection: duckdb.DuckDBPyConnection, left: Ranges) -> None:
    """Keep it for whoever cleans the broker; part of the caller's transaction."""
    rows = [(topic, *run) for topic, runs in left.items() for run in runs]
    if rows:
        connection.executemany(
            "insert into landing.left_in_topics select * from (values (?, ?, ?, ?))"
            " except select * from landing.left_in_topics",
            rows,
        )


def as_lines(left: Ranges, most: int = 20) -> list[str]:
    """For a terminal: a line per topic and partition."""
    lines = []
    for topic, runs in left.items():
        for partition in sorted({run[0] for run in runs}):
            told = [
                f"{first:,}" if first == last else f"{first:,} to {last:,}"
                for number, first, last in runs
                if number == partition
            ]
            more = f" and {len(told) - most:,} more ranges" if len(told) > most else ""
            lines.append(
                f"  topic {topic}, partition {partition}: offsets {', '.join(told[:most])}{more}"
            )
    return lines
