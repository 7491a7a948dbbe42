"""What the warehouse knows when the scorer starts: positions, payments, labels and scores, in one snapshot.

The rows are those of the staging models, read from the raw tables, since a build may be behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestration.connectors import Position
from orchestration.settings import Settings
from orchestration.streaming.payment_windows import DAY, DELAY, LATENESS, RETENTION
from orchestration.streaming.topics import landed_position, one_moment
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

STREAM = "payments_stream"

_PLACE = """
    cast(split_part(_source_position, '/', -2) as integer) as part,
    cast(split_part(_source_position, '/', -1) as bigint) as place
"""
_PAYMENT = """
    transaction_id,
    epoch_us(transaction_at) as "at",
    customer_id,
    terminal_id,
    cast(amount * 100 as bigint) as cents
"""
_EMPTY = {
    f"{STREAM}__payments": "transaction_id bigint, transaction_at timestamp, customer_id bigint,"
    " terminal_id bigint, amount decimal(12, 2), _loaded_at timestamp, _source_position varchar",
    "payments_lake__payments": "transaction_id bigint, transaction_at timestamp, customer_id bigint,"
    " terminal_id bigint, amount decimal(12, 2), is_fraud boolean, _loaded_at timestamp",
    f"{STREAM}__fraud_reports": "transaction_id bigint, is_fraud boolean, reported_at timestamp,"
    " _loaded_at timestamp, _source_position varchar",
}


class Snapshot:
    """The landed payments, labels and scores at one moment."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._has_scores = table_exists(connection, "raw", f"{STREAM}__scores")
        for table, columns in _EMPTY.items():
            if table_exists(connection, "raw", table):
                continue
            connection.execute(f"create temp table {table} ({columns})")

    def position(self, entity: str) -> Position:
        """How far an entity of the stream has landed."""
        return landed_position(self._connection, f"{STREAM}__{entity}")

    def scored(self) -> dict[int, int]:
        """Per partition of the payments the offset after the last one of which a score has landed."""
        if not self._has_scores:
            return {}
        rows = self._connection.execute(
            f"""
            select
                cast(split_part(payment_position, '/', -2) as integer),
                max(cast(split_part(payment_position, '/', -1) as bigint)) + 1
            from raw.{STREAM}__scores group by 1
            """
        ).fetchall()
        return dict(rows)

    def payments(self, before: Mapping[int, int] | None) -> pa.Table:
        """One row per payment, as far back as the windows reach, for `PaymentWindows.rebuild`.

        Args:
            before: per partition of the stream, the offset to stop before; None: all that landed.
        """
        limits = (
            ""
            if before is None
            else "where "
            + (" or ".join(f"part = {p} and place < {at}" for p, at in before.items()) or "false")
        )
        self._connection.execute(
            f"""
            create or replace temp table payments as
            with arrived as (
                select *, {_PLACE} from {self._table(f"{STREAM}__payments")}
            ),
            stream as (
                select {_PAYMENT} from arrived {limits}
                qualify row_number() over (
                    partition by transaction_id order by _loaded_at, part, place
                ) = 1
            ),
            lake as (
                select {_PAYMENT} from {self._table("payments_lake__payments")}
                where transaction_id not in (select transaction_id from arrived)
                qualify row_number() over (
                    partition by transaction_id order by _loaded_at desc, transaction_at desc
                ) = 1
            ),
            every as (from stream union all from lake),
            days as (select "at" // {DAY} as day, count(*) as payments from every group by 1),
            -- A clock that ran ahead is not the present: the last day is one with about as many as others.
            latest as (
                select max(day) as day from days
                where payments * 10 >= (select median(payments) from days)
            ),
            present as (select every.* from every, latest where "at" < (day + 2) * {DAY})
            from present where "at" >= (select max("at") from present) - {RETENTION}
            """
        )
        return self._connection.execute("from payments").to_arrow_table()

    def labels(self) -> pa.Table:
        """Every version of the labels of `payments`, and of those that may still come; reports are last."""
        reports = self._table(f"{STREAM}__fraud_reports")
        return self._connection.execute(
            f"""
            with reports as (
                select transaction_id, is_fraud, epoch_us(reported_at) as known_at
                from (select *, {_PLACE} from {reports})
                qualify row_number() over (
                    partition by transaction_id, reported_at
                    order by _loaded_at desc, part desc, place desc
                ) = 1
            ),
            lake as (
                select transaction_id, is_fraud, epoch_us(transaction_at) + {DELAY} as in_time,
                    epoch_us(_loaded_at) as loaded_at,
                    row_number() over (
                        partition by transaction_id order by _loaded_at, is_fraud
                    ) as version
                from {self._table("payments_lake__payments")}
                where is_fraud is not null
                    and transaction_id in (select transaction_id from payments)
            )
            select transaction_id, is_fraud,
                case when version = 1 then in_time else greatest(loaded_at, in_time) end as known_at
            from lake
            qualify row_number() over (partition by transaction_id, known_at order by version desc) = 1
            union all
            from reports
            where transaction_id in (select transaction_id from payments)
                or known_at >= coalesce((select max("at") from payments), 0) - {LATENESS}
            """
        ).to_arrow_table()

    def scores(self, since: int) -> pa.Table:
        """The last score that landed of every payment at or after `since` (microseconds)."""
        import pyarrow as pa

        if not self._has_scores:
            return pa.table({})
        return self._connection.execute(
            f"""
            select * exclude (transaction_at, amount), epoch_us(transaction_at) as "at",
                cast(amount as double) as amount
            from raw.{STREAM}__scores
            where epoch_us(transaction_at) >= ?
            qualify row_number() over (
                partition by transaction_id order by revision desc, _loaded_at,
                cast(split_part(_source_position, '/', -1) as bigint)
            ) = 1
            """,
            [since],
        ).to_arrow_table()

    def _table(self, name: str) -> str:
        return name if not table_exists(self._connection, "raw", name) else f"raw.{name}"


@contextmanager
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    """The warehouse as it stands, for as long as the block runs.

    Raises:
        MendableError: the warehouse cannot be read.
    """
    with one_moment(settings) as connection:
        yield Snapshot(connection)
