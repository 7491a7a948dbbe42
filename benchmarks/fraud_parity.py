"""Every payment through the scorer, then its features against the SQL ones: `python -m benchmarks.fraud_parity`.

Three months of payments, and each one's label a week later, are replayed over the log on disk as fast as they
are scored: once in order, and once with every hundredth payment up to six days late and every hundredth twice.
Payments are the real ones, if WATERSHED_TEST_DATA names a folder with card_payments, else made up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
from rich.console import Console
from rich.table import Table

from benchmarks.fraud_features import fill, model_sql
from orchestration.connectors import event_log, event_stream
from orchestration.connectors.event_log import Event
from orchestration.learning.fraud_detection import FEATURES, BaselineRule
from orchestration.settings import Settings, load_settings
from orchestration.streaming.engine import Scored, run
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, stream_topic
from orchestration.streaming.publisher import open_publisher
from orchestration.warehouse.connect import connect

COMPARED = FEATURES[1:]
"""The amount is no window."""
LATE_DAYS = 6
_PAYMENTS = """
    with made as (
        select *, transaction_id % 100 = 1 as is_late, transaction_id % 100 = 2 as is_twice
        from intermediate.int_payments__merged
    ),
    came as (
        select *, transaction_at + case
            when {disturbed} and is_late then to_seconds(hash(transaction_id) % {late_seconds})
            else interval 0 seconds
        end as arrived_at
        from made cross join range(2) as copies (copy)
        where copy = 0 or ({disturbed} and is_twice)
    )
    select to_json({{
        transaction_id: transaction_id, transaction_at: strftime(transaction_at, '%Y-%m-%dT%H:%M:%S.%fZ'),
        customer_id: customer_id, terminal_id: terminal_id, amount: amount
    }}) from came order by arrived_at, transaction_id, copy
"""
_REPORTS = """
    select to_json({
        transaction_id: transaction_id, is_fraud: is_fraud,
        reported_at: strftime(known_at, '%Y-%m-%dT%H:%M:%S.%fZ')
    }) from intermediate.int_fraud_labels__versioned order by known_at, transaction_id
"""


class Replay(FraudScoring):
    """The scorer, which knows how much has come."""

    seen = 0

    def update(self, events: Sequence[Event], received: float) -> Scored:
        """As the scorer does."""
        self.seen += len(events)
        return super().update(events, received)


def put(settings: Settings, topic: str, connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Append the events of a query to a topic."""
    found, count = connection.execute(query), 0
    folder = event_log.folder_of(settings.value_of("payments_stream_url"))
    with event_log.Producer(folder, topic) as producer:
        while rows := found.fetchmany(10_000):
            producer.append_batch([text.encode() for (text,) in rows])
            count += len(rows)
    return count


def replay(connection: duckdb.DuckDBPyConnection, *, disturbed: bool) -> tuple[str, ...]:
    """A row: how many payments were scored in what time, and how many of them differ from the SQL."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder), payments_stream_url=f"log://{folder}/stream"
        )
        connect(settings).close()
        with open_publisher(stream_topic(settings, "payments")) as publisher:
            publisher.create(dict.fromkeys(TOPICS, 1))
            late_seconds = LATE_DAYS * 86_400
            query = _PAYMENTS.format(disturbed=disturbed, late_seconds=late_seconds)
            events = put(settings, "payments", connection, query)
            events += put(settings, "fraud_reports", connection, _REPORTS)
            scorer = Replay(settings, BaselineRule)
            started = time.perf_counter()
            done = run(scorer, publisher, stop=lambda: scorer.seen >= events, say=lambda line: None)
            seconds = time.perf_counter() - started
        differ, rows = mismatches(connection, settings)
    return (
        "late and twice" if disturbed else "in order",
        f"{done.scored:,} of {events:,} events in {seconds:.0f} s, {done.corrected:,} corrected,"
        f" {done.set_aside.total():,} set aside",
        f"{differ:,} of {rows:,} payments differ",
        "0",
    )


def mismatches(connection: duckdb.DuckDBPyConnection, settings: Settings) -> tuple[int, int]:
    """Payments of which a feature in the last score differs from the SQL one or that have no score; all payments."""
    columns = ", ".join(f"{name} double" for name in COMPARED)
    connection.execute(
        f"create or replace table scores (transaction_id bigint, revision bigint, {columns})"
    )
    for batch in event_stream.read(stream_topic(settings, "scores"), {}):
        names = ["transaction_id", "revision", *COMPARED]
        came = batch.rows.select(names)
        values = ", ".join(
            f"cast(cast({n} as boolean) as double)" if n.startswith("is_") else n for n in names
        )
        connection.register("came", came)
        connection.execute(f"insert into scores select {values} from came")
        connection.unregister("came")
    differs = " or ".join(f"s.{n} is distinct from cast(f.{n} as double)" for n in COMPARED)
    ((differ, rows),) = connection.execute(
        f"""
        select count(*) filter (where {differs}), count(*)
        from features.feat_payment__windows as f
        left join (
            from scores qualify row_number() over (partition by transaction_id order by revision desc) = 1
        ) as s on f.transaction_id = s.transaction_id
        """
    ).fetchall()
    return int(differ), int(rows)


def measure() -> Iterator[tuple[str, ...]]:
    """Both replays."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        sql = model_sql(Path(folder))
        connection.execute("attach ':memory:' as lake; use lake; create schema features")
        fill(connection, 1)
        connection.execute(f"create table features.feat_payment__windows as {sql}")
        for disturbed in (False, True):
            yield replay(connection, disturbed=disturbed)


def main() -> None:
    """Print both as a table; takes some minutes."""
    table = Table("payments came", "replayed", "features online / in SQL", "to reach")
    for row in measure():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
