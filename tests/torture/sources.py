"""The sources that the kill test loads from: two relational ones, a REST API, files, and two streams."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from orchestration.contracts.raw import build_contract
from orchestration.landing.land import RawTable
from tests.torture.harness import LATE_SECONDS, ROWS_PER_GROWTH, Row, Source, in_child

BATCH_ROWS = 16
PARTITIONS = 3
CONTRACT = build_contract(
    "torture.events",
    {
        "id": {"dtype": "Int64", "greater_than_or_equal_to": 0},
        "happened_at": {"dtype": "Datetime"},
        "amount": {"dtype": "Int64", "greater_than_or_equal_to": 0},
        "note": {"dtype": "String"},
    },
)
PLAIN = RawTable("torture__events", CONTRACT)
GROWING = RawTable("torture__events", CONTRACT, cursor="happened_at", key=("id",))
NAMES: dict[str, str] = {"system": "torture", "table": "events"}

Run = Callable[[str, list[Row]], None]
"""Runs a statement, once for each of the rows if there are any."""
Append = Callable[[list[bytes], list[bytes]], Any]
"""Sends events, given their keys and values."""


def growth_of(rows: list[Row]) -> int:
    return rows[0].id // ROWS_PER_GROWTH


# --- a table that grows by a cursor with ties, now and then a little behind it --------------------


def relational(url: str, run: Run) -> Source:
    from orchestration.connectors.relational import RelationalTable, read

    run("create table events (id bigint, happened_at timestamp, amount text, note text)", [])
    table = RelationalTable(
        **NAMES,
        url=url,
        url_setting="TORTURE_URL",
        columns=Row._fields,
        key=("id",),
        cursor="happened_at",
        overlap=f"{10 + LATE_SECONDS} seconds",
    )
    return Source(
        GROWING,
        grow=partial(run, "insert into events values ({0}, {0}, {0}, {0})"),
        read=lambda position: read(table, position, batch_rows=ROWS_PER_GROWTH),
    )


def sqlite(folder: Path) -> Source:
    def run(sql: str, rows: list[Row]) -> None:
        connection = sqlite3.connect(folder / "source.sqlite")
        connection.executemany(sql.format("?"), rows) if rows else connection.execute(sql)
        connection.commit()
        connection.close()

    return relational(f"sqlite:///{folder}/source.sqlite", run)


def postgresql(folder: Path) -> Source:
    import psycopg

    server = urlsplit(os.environ["TEST_POSTGRESQL_URL"])

    def administer(statement: str) -> None:
        with psycopg.connect(server.geturl(), autocommit=True) as connection:
            connection.execute(statement)

    administer(f'create database "{folder.name}"')
    url = server._replace(path=f"/{folder.name}").geturl()

    def run(sql: str, rows: list[Row]) -> None:
        with psycopg.connect(url) as connection, connection.cursor() as cursor:
            cursor.executemany(sql.format("%s"), rows) if rows else cursor.execute(sql)

    drop = partial(administer, f'drop database "{folder.name}" with (force)')
    return replace(relational(url, run), close=drop)


# --- a service on loopback that publishes every growth as a partition of several pages -----------


def rest(folder: Path) -> Source:
    from orchestration.connectors.rest_api import Pagination, RestEndpoint, read

    published = folder / "published"
    published.mkdir()
    server = Service(("127.0.0.1", 0), partial(Answer, published))
    process = os.fork()
    if process == 0:
        server.serve_forever()
    server.server_close()

    def grow(rows: list[Row]) -> None:
        hidden = published / ".being_written"
        hidden.write_text(json.dumps([row._asdict() for row in rows]))
        hidden.rename(published / f"{growth_of(rows):06d}")

    def close() -> None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    endpoint = RestEndpoint(
        **NAMES,
        base_url=f"http://127.0.0.1:{server.server_port}",
        url_setting="TORTURE_URL",
        path="/events",
        columns=Row._fields,
        partitions="/growths",
        partition="growth",
        pagination=Pagination(size=BATCH_ROWS),
    )
    return Source(
        PLAIN,
        grow=grow,
        read=lambda position: read(endpoint, position, batch_rows=BATCH_ROWS),
        close=close,
    )


class Service(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news here."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def __init__(self, published: Path, *request: Any) -> None:
        self.published = published
        super().__init__(*request)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/events":
            records = json.loads((self.published / asked["growth"]).read_text())
        else:
            names = sorted(name for name in os.listdir(self.published) if name[0] != ".")
            records = [{"growth": name} for name in names]
        size, page = int(asked["page_size"]), int(asked["page"])
        data = records[(page - 1) * size : page * size]
        body = json.dumps({"data": data, "pages": -(-len(records) // size) or 1}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


# --- a folder to which every growth adds a file; every fourth rewrites the one before -------------


def files(
    folder: Path, file_format: Literal["csv", "parquet"], write: Callable[[Path, list[Row]], None]
) -> Source:
    from orchestration.connectors.lake_files import LakeFiles, read

    place = folder / "files"
    place.mkdir()
    before: list[Row] = []

    def grow(rows: list[Row]) -> None:
        growth = growth_of(rows)
        if growth % 4 == 3:
            growth, rows = growth - 1, before + rows
        before[:] = rows
        hidden = place / f".being_written.{file_format}"
        write(hidden, rows)
        hidden.rename(place / f"{growth:06d}.{file_format}")

    lake = LakeFiles(
        **NAMES,
        location=str(place),
        location_setting="TORTURE_URL",
        pattern=f"*.{file_format}",
        file_format=file_format,
    )
    return Source(
        PLAIN,
        grow=grow,
        read=lambda position: read(lake, position, batch_rows=BATCH_ROWS),
        replaces=True,
        seconds_to_settle=2.1,  # a file that is younger than 2 s counts as still being written
    )


def csv_files(folder: Path) -> Source:
    def write(path: Path, rows: list[Row]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Row._fields, *rows])

    return files(folder, "csv", write)


def parquet_files(folder: Path) -> Source:
    def write(path: Path, rows: list[Row]) -> None:
        from pyarrow import Table, parquet

        columns = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(Table.from_pydict(columns), path, row_group_size=BATCH_ROWS)

    return files(folder, "parquet", write)


# --- a topic of three partitions, with events that are no JSON among them -------------------------


def stream(url: str, topic: str, open_producer: Callable[[], Append]) -> Source:
    from orchestration.connectors.event_stream import EventTopic, read

    opened: list[Append] = []

    def grow(rows: list[Row]) -> None:
        if not opened:
            opened.append(open_producer())
        values = [json.dumps(row._asdict()).encode() for row in rows]
        for number, row in enumerate(rows):
            if not row.is_good and row.id % 2:
                values[number] = values[number].replace(b'", ', b"\xff, ")
        opened[0]([str(row.id).encode() for row in rows], values)

    source = EventTopic(
        **NAMES, url=url, url_setting="TORTURE_URL", topic=topic, columns=Row._fields
    )
    return Source(
        PLAIN, grow=grow, read=lambda position: read(source, position, batch_rows=BATCH_ROWS)
    )


def log(folder: Path) -> Source:
    from orchestration.connectors import event_log

    topics = folder / "topics"
    event_log.create_topic(topics, "events", PARTITIONS)

    def open_producer() -> Append:
        producer = event_log.Producer(topics, "events", segment_bytes=4096)
        return lambda keys, values: producer.append_batch(values, keys)

    return stream(f"log://{topics}", "events", open_producer)


def kafka(folder: Path) -> Source:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    client = {"bootstrap.servers": urlsplit(os.environ["TEST_KAFKA_URL"]).netloc}

    def create() -> None:
        admin = AdminClient(client)
        topic = NewTopic(folder.name, PARTITIONS, replication_factor=1)
        admin.create_topics([topic])[folder.name].result(30)

    def delete() -> None:
        admin = AdminClient(client)
        admin.delete_topics([folder.name])[folder.name].result(30)

    def open_producer() -> Append:
        producer = Producer(client | {"enable.idempotence": True, "log_level": 3})

        def append(keys: list[bytes], values: list[bytes]) -> None:
            for key, value in zip(keys, values, strict=True):
                producer.produce(folder.name, value, key)
            producer.flush()

        return append

    in_child(create)  # librdkafka has threads of its own
    return replace(
        stream(os.environ["TEST_KAFKA_URL"], folder.name, open_producer),
        close=partial(in_child, delete),
    )


KINDS: dict[str, dict[str, Callable[[Path], Source]]] = {
    "relational": {"sqlite": sqlite, "postgresql": postgresql},
    "rest": {"rest": rest},
    "files": {"csv": csv_files, "parquet": parquet_files},
    "stream": {"log": log, "kafka": kafka},
}
"""Kind of source to the sources that stand for it."""
