"""A thousand releases: time to open, list, resolve and roll back; and what a hundred with 1 % change each store.

`python -m benchmarks.releases [--releases 1000] [--rows 1000000]`. Storage is told as a ratio to one release. The
change is written as the materialisation `difference` writes it, and, beside it, as `create or replace` does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from orchestration.settings import Settings, load_settings
from orchestration.warehouse.connect import connect, transaction, writing
from orchestration.warehouse.maintenance import maintain
from orchestration.warehouse.releases import move, release, releases, resolve, verify

CHECKS = {"checks_passed": 1, "checks_warned": 0}
TABLE = "training_sets.train_a"
ROW = """
    {id} as id, md5(({id} + {salt})::varchar) as name, hash({id} + {salt}) % 1000000 / 7 as amount,
    timestamp '2026-01-01' + to_seconds({id}::bigint) as as_of_at, ({id} + {salt}) % 2 = 0 as label
"""


def median_seconds(action: Callable[[], object], times: int = 7) -> float:
    """The median of what it took, of several times."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def opened(settings: Settings) -> None:
    """Connect and read from `published`, as a person does."""
    with connect(settings, read_only=True) as connection:
        connection.execute("from published.train_a limit 1").fetchall()


def of_many(settings: Settings, count: int) -> None:
    """Make so many releases, and time what is done with them."""
    with connect(settings) as connection:
        connection.execute("create schema training_sets")
        connection.execute(f"create table {TABLE} (id bigint)")
        began = time.perf_counter()
        for number in range(count):
            connection.execute(f"insert into {TABLE} values ({number})")
            release(connection, settings, **CHECKS)
            if number % 100 == 99:
                print(
                    f"  {number + 1} releases, {(time.perf_counter() - began) / (number + 1):.2f} s each",
                    flush=True,
                )
        print(f"with {count:,} releases, median seconds:")
        print(f"  open and read     {median_seconds(lambda: opened(settings)):.3f}")
        print(f"  list              {median_seconds(lambda: releases(connection)):.3f}")
        middle = f"train_a@r{count // 2}"
        print(f"  resolve           {median_seconds(lambda: resolve(connection, middle)):.3f}")
        names = iter([f"r{1 + number * 31 % count}" for number in range(100)])
        print(
            f"  roll back         {median_seconds(lambda: move(connection, settings, next(names))):.3f}  (mark: 1)"
        )


def appended(connection: duckdb.DuckDBPyConnection, rows: int, number: int) -> None:
    """One percent more rows."""
    share = rows // 100
    row = ROW.format(id=f"(range + {rows + number * share})", salt=0)
    connection.execute(f"insert into {TABLE} select {row} from range({share})")


def updated(connection: duckdb.DuckDBPyConnection, rows: int, number: int) -> None:
    """Other values in 1 % of the rows, scattered over all of the table."""
    row = ROW.format(id="id", salt=number * rows)
    where = f"hash(id) % 100 = {number % 100}"
    with transaction(connection):
        connection.execute(
            f"create or replace temp table made as select {row} from {TABLE} where {where}"
        )
        connection.execute(f"delete from {TABLE} where {where}")
        connection.execute(f"insert into {TABLE} from made")


def recreated(connection: duckdb.DuckDBPyConnection, rows: int, number: int) -> None:
    """The whole table anew, with other values in 1 % of the rows."""
    row = ROW.format(
        id="range", salt=f"(case when range % 100 = {number % 100} then {rows} else 0 end)"
    )
    connection.execute(f"create or replace table {TABLE} as select {row} from range({rows})")


def of_storage(settings: Settings, how: Callable[..., None], rows: int, count: int) -> None:
    """Make so many releases with 1 % change each, and print what they store."""

    def bytes_now() -> int:
        files = Path(settings.lake_path).rglob("*.parquet")
        return sum(file.stat().st_size for file in files) + settings.catalog_file.stat().st_size  # type: ignore[union-attr]

    with connect(settings) as connection:
        connection.execute("create schema training_sets")
        connection.execute(
            f"create table {TABLE} as select {ROW.format(id='range', salt=0)} from range({rows})"
        )
        release(connection, settings, **CHECKS)
        one = bytes_now()
        for number in range(1, count):
            with writing(settings, "changing 1 %"):
                how(connection, rows, number)
            release(connection, settings, **CHECKS)
        before = bytes_now()
        maintain(connection, settings, keep_days=0)
        print(
            f"  1 % {how.__name__}: {count} releases of {rows:,} rows store {before / one:.2f} times one,"
            f" {bytes_now() / one:.2f} after upkeep (mark: 2)",
            flush=True,
        )
        for known in releases(connection):
            assert all(told == now for _, told, now in verify(connection, known.name)), known.name
        print(f"    {count} releases hold the rows that were released", flush=True)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    for how in (appended, updated):
        with tempfile.TemporaryDirectory() as place:
            of_storage(load_settings(data_dir=Path(place)), how, given.rows, 100)
    with tempfile.TemporaryDirectory() as place:
        of_storage(load_settings(data_dir=Path(place)), recreated, given.rows, 5)
    with tempfile.TemporaryDirectory() as place:
        of_many(load_settings(data_dir=Path(place)), given.releases)


if __name__ == "__main__":
    main()
