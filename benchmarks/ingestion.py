"""Landing against dlt and against the machine's limit, by kind of source: `make bench-ingestion`.

Each case runs three whole processes in turn over the same source. *Ours* reads, checks a contract of
twelve columns, quarantines and commits to the warehouse. *dlt* loads the same rows into DuckDB with
the backend that is its fastest for the case. *The limit* only moves the bytes: PostgreSQL's COPY to
nowhere, DuckDB reading the files into a table, or the API's pages fetched and parsed. No contract.

What dlt needs beside the project's packages is the extra `bench`, which `make bench-ingestion` installs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Run, run

ROWS = {
    "postgresql": 5_000_000,
    "events": 1_000_000,
    "csv": 1_000_000,
    "parquet": 1_000_000,
    "api": 50_000,
}
TO_REACH = {"postgresql": 5.0, "events": 5.0}
"""How many times faster than dlt, where the project has set itself a mark."""
PAGE = 1_000

_COLUMNS = """
    i + 1 as order_id,
    cast(i % 100000 as bigint) as customer_id,
    cast(i % 997 as integer) as shop_id,
    cast(i * 7 % 1000000 as bigint) as product_id,
    cast(1 + i % 9 as integer) as quantity,
    cast((i * 31 % 100000) / 100 as decimal(12, 2)) as amount_usd,
    cast((i % 1000) as double) / 7 as rate,
    timestamp '2024-01-01' + to_milliseconds(i * 1000) as ordered_at,
    date '2024-01-01' + cast(i % 365 as integer) as ship_date,
    ['open', 'shipped', 'paid'][1 + i % 3] as state,
    i % 5 = 0 as is_gift,
    case when i % 3 > 0 then 'note number ' || i end as note
"""

_OURS = """
import sys
from orchestration.connectors import event_stream, lake_files, relational, rest_api
from orchestration.contracts.raw import build_contract
from orchestration.landing.checking import sql_types
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
case, url, folder, rows = sys.argv[1:]
contract = build_contract("bench.orders", {
    "order_id": {"dtype": "Int64", "greater_than": 0},
    "customer_id": {"dtype": "Int64", "greater_than_or_equal_to": 0},
    "shop_id": {"dtype": "Int32", "greater_than_or_equal_to": 0},
    "product_id": {"dtype": "Int64", "greater_than_or_equal_to": 0},
    "quantity": {"dtype": "Int32", "in_range": {"min_value": 1, "max_value": 100}},
    "amount_usd": {"dtype": "Decimal(12, 2)", "greater_than_or_equal_to": 0},
    "rate": {"dtype": "Float64", "greater_than_or_equal_to": 0},
    "ordered_at": {"dtype": "Datetime"},
    "ship_date": {"dtype": "Date"},
    "state": {"dtype": "String", "isin": ["open", "shipped", "paid"]},
    "is_gift": {"dtype": "Boolean"},
    "note": {"dtype": "String", "nullable": True},
})
common = {"system": "bench", "table": "orders", "columns": tuple(contract.columns)}
if case == "postgresql":
    source = relational.RelationalTable(url=url, url_setting="", cursor="ordered_at", **common)
    read = relational.read
elif case == "events":
    source = event_stream.EventTopic(
        url=url, topic="orders", url_setting="", types=sql_types(contract), **common)
    read = event_stream.read
elif case == "api":
    source = rest_api.RestEndpoint(base_url=url, path="/orders", url_setting="", **common)
    read = rest_api.read
else:
    source = lake_files.LakeFiles(
        location=url, pattern="*", file_format=case, location_setting="", system="bench", table="orders")
    read = lake_files.read
settings = load_settings(data_dir=folder)
table = RawTable("bench__orders", contract, cursor="ordered_at", drift="quarantine")
landed = land(settings, table, lambda position: read(source, position))
assert landed.rows_kept == int(rows), landed
"""

_DLT = """
import sys
import dlt
case, url, folder, rows = sys.argv[1:]
if case == "postgresql":
    from dlt.sources.sql_database import sql_table
    data = sql_table(url.replace("postgresql://", "postgresql+psycopg://"), "orders",
                     backend="connectorx", backend_kwargs={"return_type": "arrow_stream", "conn": url})
elif case == "api":
    from dlt.sources.helpers.rest_client import RESTClient
    from dlt.sources.helpers.rest_client.paginators import PageNumberPaginator
    @dlt.resource(name="orders")
    def data():
        yield from RESTClient(url).paginate(
            "/orders", params={"page_size": 1000}, data_selector="data",
            paginator=PageNumberPaginator(base_page=1, total_path="pages"))
elif case == "events":
    import json
    @dlt.resource(name="orders")
    def data():
        with open(url) as lines:
            batch = []
            for line in lines:
                batch.append(json.loads(line))
                if len(batch) == 10_000:
                    yield batch
                    batch = []
            yield batch
elif case == "csv":
    import pyarrow.csv
    @dlt.resource(name="orders")
    def data():
        for path in sorted(__import__("pathlib").Path(url).iterdir()):
            for batch in pyarrow.csv.open_csv(path):
                yield batch
else:
    import pyarrow.parquet
    @dlt.resource(name="orders")
    def data():
        for path in sorted(__import__("pathlib").Path(url).iterdir()):
            yield from pyarrow.parquet.ParquetFile(path).iter_batches(100_000)
pipeline = dlt.pipeline(pipelines_dir=folder, destination=dlt.destinations.duckdb(f"{folder}/d.duckdb"),
                        dataset_name="raw")
pipeline.run(data() if callable(data) and case != "postgresql" else data, table_name="orders")
with pipeline.sql_client() as client:
    assert client.execute_sql("select count(*) from orders")[0][0] == int(rows)
"""

_LIMIT = """
import sys
case, url, folder, rows = sys.argv[1:]
if case == "postgresql":
    import psycopg
    with psycopg.connect(url) as connection, open("/dev/null", "wb") as nowhere:
        with connection.cursor().copy("copy orders to stdout") as copy:
            for block in copy:
                nowhere.write(block)
elif case == "api":
    import orjson, requests
    with requests.Session() as session:
        page = pages = 1
        while page <= pages:
            answer = orjson.loads(session.get(
                f"{url}/orders", params={"page": page, "page_size": 1000}).content)
            pages, page = answer["pages"], page + 1
else:
    import duckdb
    read = {"events": f"read_json('{url}')", "csv": f"read_csv('{url}/*')",
            "parquet": f"read_parquet('{url}/*')"}[case]
    connection = duckdb.connect(f"{folder}/limit.duckdb", config={"memory_limit": "2GB"})
    connection.execute(f"create table orders as from {read}")
    ((found,),) = connection.execute("select count(*) from orders").fetchall()
    assert found == int(rows)
"""


def main() -> None:
    """Run the cases named, or all; prints a table of ratios and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *ROWS], default=[])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, for a quick look")
    arguments = parser.parse_args()
    table = Table("source", "rows", "ours", "dlt", "limit", "dlt / ours", "ours / limit", "peak MB")
    for case in arguments.cases or ROWS:
        rows = int(ROWS[case] * arguments.share)
        found = measure(case, rows, arguments.runs)
        if found is None:
            table.add_row(case, "", "TEST_POSTGRESQL_URL names no server")
            continue
        ours, dlt, limit = found
        table.add_row(
            case,
            f"{rows:,}",
            *(f"{one.seconds:.1f} s" for one in found),
            f"{dlt.seconds / ours.seconds:.1f}"
            + (f" (to reach {TO_REACH[case]:g})" if case in TO_REACH else ""),
            f"{ours.seconds / limit.seconds:.1f}",
            f"{ours.peak_mb:.0f}",
        )
    Console(width=120).print(table)


def measure(case: str, rows: int, runs: int) -> list[Run] | None:
    """Medians of ours, dlt's and the limit's runs, taken in turn; None without the server it needs."""
    found: list[list[Run]] = [[], [], []]
    with tempfile.TemporaryDirectory() as folder, _source(case, rows, Path(folder)) as urls:
        if urls is None:
            return None
        for number in range(runs):
            for script, url, times in zip((_OURS, _DLT, _LIMIT), urls, found, strict=True):
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    command = [sys.executable, "-c", script, case, url, own, str(rows)]
                    environment = {
                        "RUNTIME__DLTHUB_TELEMETRY": "false",
                        "RUNTIME__LOG_LEVEL": "ERROR",
                    }
                    times.append(run(command, environment=environment))
                print(f"{case} {number + 1}/{runs}: {times[-1].seconds:.1f} s", file=sys.stderr)
    middle = statistics.median
    return [
        Run(middle(one.seconds for one in times), max(one.peak_mb for one in times))
        for times in found
    ]


@contextlib.contextmanager
def _source(case: str, rows: int, folder: Path) -> Iterator[tuple[str, str, str] | None]:
    """The filled source: its URL for ours, for dlt and for the limit."""
    connection = duckdb.connect()
    select = f"select {_COLUMNS} from range({rows}) r(i)"
    if case == "postgresql":
        server = os.environ.get("TEST_POSTGRESQL_URL")
        if server is None:
            yield None
            return
        _fill_postgresql(server, select)
        yield server, server, server
    elif case == "api":
        records = [
            json.loads(line)
            for (line,) in connection.execute(f"select to_json(o) from ({select}) o").fetchall()
        ]
        with _api(records) as url:
            yield url, url, url
    elif case == "events":
        from orchestration.connectors.event_log import Producer, create_topic

        lines = folder / "events.ndjson"
        connection.execute(f"copy ({select}) to '{lines}' (format json)")
        log = folder / "log"
        create_topic(log, "orders")
        with Producer(log, "orders") as producer, lines.open("rb") as source:
            producer.append_batch([line.rstrip(b"\n") for line in source])
        yield f"log://{log}", str(lines), str(lines)
    else:
        files = folder / "files"
        files.mkdir()
        for part in range(4):
            where = f"where i % 4 = {part}"
            connection.execute(
                f"copy ({select} {where}) to '{files}/{part}.{case}' (format {case})"
            )
        yield str(files), str(files), str(files)


def _fill_postgresql(server: str, select: str) -> None:
    from orchestration.duckdb_session import literal, open_session

    with open_session(memory_limit="2GB", extensions=["postgres"]) as connection:
        connection.execute(f"attach {literal(server)} as pg (type postgres)")
        connection.execute("drop table if exists pg.orders")
        connection.execute(f"create table pg.orders as {select}")
        connection.execute(
            "call postgres_execute('pg', 'create index on orders (ordered_at); analyze orders')"
        )


@contextlib.contextmanager
def _api(records: list[dict[str, Any]]) -> Iterator[str]:
    """A loopback API that serves the records in numbered pages, made beforehand."""
    pages = [
        json.dumps(
            {"data": records[start : start + PAGE], "pages": -(-len(records) // PAGE)}
        ).encode()
        for start in range(0, len(records), PAGE)
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = parse_qs(urlsplit(self.path).query).get("page", ["1"])[0]
            body = pages[int(page) - 1]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
