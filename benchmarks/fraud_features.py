"""A payment's twelve window features in SQL against pandas: `python -m benchmarks.fraud_features`.

*SQL* is `feat_payment__windows` as dbt compiles it. *pandas* does what the Fraud Detection Handbook does:
`rolling` with time offsets over each customer's and each terminal's payments, group by group. Both go from
memory to memory and make the same numbers, which is checked. Payments are the real ones, if
WATERSHED_TEST_DATA names a folder with card_payments; otherwise they are made up, as many per customer and
terminal.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from rich.console import Console
from rich.table import Table

from benchmarks.timing import BIN, ROOT

if TYPE_CHECKING:
    import pandas as pd

DELAY = 7
WINDOWS = (1, 7, 30)
MODEL = "models/features/fraud_detection/feat_payment__windows.sql"
QUARTER = 872_795
"""Payments of three months; two of these quarters are the 1.75 M payments of the claim."""

_MADE_UP = f"""
    select
        i as transaction_id,
        timestamp '2018-04-01' + to_seconds(cast(i * (91 * 86400 / {QUARTER}) as bigint)) as transaction_at,
        cast(hash(i, 1) % 5000 as bigint) as customer_id,
        cast(hash(i, 2) % 10000 as bigint) as terminal_id,
        cast(1 + hash(i, 3) % 20000 / 100 as decimal(12, 2)) as amount,
        hash(i, 4) % 1000 < 8 as is_fraud
    from range({QUARTER}) as payments (i)
"""


def model_sql(folder: Path) -> str:
    """The model as dbt compiles it."""
    subprocess.run(
        [BIN / "dbt", "compile", "--quiet", "--target-path", folder, "--select", Path(MODEL).stem],
        cwd=ROOT / "dbt_project",
        env={**os.environ, "WATERSHED_DATA_DIR": str(folder / "data")},
        stdout=subprocess.DEVNULL,  # it prints the SQL
        check=True,
    )
    return (folder / "compiled" / "watershed" / MODEL).read_text()


def fill(connection: duckdb.DuckDBPyConnection, quarters: float, *, skewed: bool = False) -> int:
    """So many times three months of payments and their labels; skewed, a terminal takes every third."""
    real = Path(os.environ.get("WATERSHED_TEST_DATA", ""), "card_payments")
    given = f"from read_parquet('{real}/**/*.parquet')" if real.is_dir() else _MADE_UP
    terminal = (
        "case when transaction_id % 3 = 0 then 1 else terminal_id end" if skewed else "terminal_id"
    )
    connection.execute("create schema if not exists intermediate")
    connection.execute(
        f"create or replace table intermediate.int_payments__merged as"
        f" with given as ({given})"
        f" select transaction_id + 1000000 * quarter as transaction_id,"
        f" transaction_at + to_days(cast(91 * quarter as integer)) as transaction_at,"
        f" cast(customer_id as bigint) as customer_id, cast({terminal} as bigint) as terminal_id, amount, is_fraud"
        f" from given cross join range({max(1, int(quarters))}) as quarters (quarter)"
        f" where {quarters} >= 1 or transaction_at < timestamp '2018-04-01' + interval '{int(91 * quarters)} days'"
    )
    connection.execute(
        "create or replace table intermediate.int_fraud_labels__versioned as"
        " select transaction_id, transaction_at, customer_id, terminal_id, is_fraud,"
        f" transaction_at + interval {DELAY} days as known_at, cast(null as timestamp) as superseded_at"
        " from intermediate.int_payments__merged"
    )
    ((rows,),) = connection.execute(
        "select count(*) from intermediate.int_payments__merged"
    ).fetchall()
    return int(rows)


def in_sql(connection: duckdb.DuckDBPyConnection, sql: str) -> float:
    """Seconds to build the table of features."""
    connection.execute("create schema if not exists features")
    started = time.perf_counter()
    connection.execute(f"create or replace table features.feat_payment__windows as {sql}")
    return time.perf_counter() - started


def in_pandas(payments: pd.DataFrame) -> pd.DataFrame:
    """The twelve features of payments in the order of time, as columns beside them."""
    import pandas as pd

    def of_customer(group: pd.DataFrame) -> pd.DataFrame:
        group = group.sort_values(["transaction_at", "transaction_id"])
        amounts = group.set_index("transaction_at")["amount"]
        for days in WINDOWS:
            total = amounts.rolling(f"{days}D").sum()
            count = amounts.rolling(f"{days}D").count()
            group[f"customer_payments_count_{days}d"] = count.to_numpy()
            group[f"customer_amount_avg_{days}d"] = (total / count).to_numpy()
        return group

    def of_terminal(group: pd.DataFrame) -> pd.DataFrame:
        group = group.sort_values(["transaction_at", "transaction_id"])
        frauds = group.set_index("transaction_at")["is_fraud"]
        late_frauds = frauds.rolling(f"{DELAY}D").sum()
        late_count = frauds.rolling(f"{DELAY}D").count()
        for days in WINDOWS:
            found = frauds.rolling(f"{DELAY + days}D").sum() - late_frauds
            count = frauds.rolling(f"{DELAY + days}D").count() - late_count
            group[f"terminal_payments_count_{days}d"] = count.to_numpy()
            group[f"terminal_fraud_share_{days}d"] = (found / count).fillna(0).to_numpy()
        return group

    for key, of_group in (("customer_id", of_customer), ("terminal_id", of_terminal)):
        payments = pd.concat([of_group(group) for _, group in payments.groupby(key)])
    return payments


def mismatches(connection: duckdb.DuckDBPyConnection, expected: pd.DataFrame) -> int:
    """Features, over all payments, in which SQL and pandas differ by more than 1e-9 of the value."""
    names = [
        name for name in expected if name.startswith(("customer_", "terminal_")) and name[-1] == "d"
    ]
    names = [name for name in names if name not in ("customer_id", "terminal_id")]
    differ = " + ".join(
        f"cast(abs(f.{name} - p.{name}) > 1e-9 * greatest(1, abs(p.{name})) as int)"
        for name in names
    )
    assert len(names) == 12, names
    connection.register("expected", expected)
    ((rows, found),) = connection.execute(
        f"select count(*), sum({differ}) from features.feat_payment__windows as f"
        " inner join expected as p on f.transaction_id = p.transaction_id"
    ).fetchall()
    connection.unregister("expected")
    assert rows == len(expected), f"{rows} of {len(expected)} payments are in both"
    return int(found)


def measure(runs: int = 3) -> Iterator[tuple[str, ...]]:
    """Rows: SQL against pandas on 1.75 M payments, ten times the rows, a terminal that takes a third."""
    with tempfile.TemporaryDirectory() as folder:
        sql = model_sql(Path(folder))
        with duckdb.connect(":memory:") as connection:
            connection.execute("attach ':memory:' as lake; use lake")

            def median() -> float:
                return statistics.median(in_sql(connection, sql) for _ in range(runs))

            rows = fill(connection, 2)
            payments: Any = connection.execute(
                "select * replace (cast(amount as double) as amount, cast(is_fraud as int) as is_fraud)"
                " from intermediate.int_payments__merged order by transaction_at, transaction_id"
            ).df()
            started = time.perf_counter()
            expected = in_pandas(payments)
            theirs = time.perf_counter() - started
            ours = median()
            differ = mismatches(connection, expected)
            del payments, expected
            yield (
                f"12 features of {rows:,} payments: pandas rolling / SQL ({differ} values differ)",
                f"{ours:.1f} s",
                f"{theirs:.1f} s",
                f"{theirs / ours:.1f}",
                ">= 20",
            )
            fill(connection, 2, skewed=True)
            skewed = median()
            yield (
                "the same, a terminal takes a third / evenly",
                f"{skewed:.1f} s",
                f"{ours:.1f} s",
                f"{skewed / ours:.2f}",
                "<= 1.5",
            )
            fill(connection, 1)
            one = median()
            fill(connection, 10)
            ten = in_sql(connection, sql)
            yield (
                "ten times the rows / ten times the time",
                f"{ten:.1f} s",
                f"{10 * one:.1f} s",
                f"{ten / (10 * one):.2f}",
                "<= 1.3",
            )


def main() -> None:
    """Print the rows as a table; takes some minutes, most of them pandas'."""
    table = Table("claim", "measured", "against", "ratio", "to reach")
    for row in measure():
        table.add_row(*row)
        print(*row, sep=" | ", file=sys.stderr)
    Console().print(table)


if __name__ == "__main__":
    main()
