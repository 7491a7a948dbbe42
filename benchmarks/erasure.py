"""Erasure across 100 releases of a table of 1 M rows, of which each changes 1 %: within 60 s on 2 cores."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.erasure import forget
from orchestration.warehouse.person import Person
from orchestration.warehouse.releases import release, releases, verify

ROWS, RELEASES, LIMIT = 1_000_000, 100, 60.0
_ROW = (
    "range as number, range % 20000 as customer_id, range / 7 as share, md5(range::varchar) as note"
)


def main() -> None:
    """Build, forget, compare with writing the same bytes once; ends with 1 beyond the limit."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            data_dir=Path(folder) / "data",
            catalog="",
            lake_path="",
            privacy_key="of the benchmark, long enough",
        )
        with connect(settings) as connection:
            connection.execute("create schema training_sets")
            connection.execute(
                f"create table training_sets.train_a as select {_ROW} from range({ROWS})"
            )
            for step in range(RELEASES):
                if step:
                    connection.execute(
                        "update training_sets.train_a set share = share + 1"
                        f" where number % 100 = {step}"
                    )
                release(connection, settings, checks_passed=1, checks_warned=0)
        lake = Path(settings.lake_path)
        size = sum(file.stat().st_size for file in lake.rglob("*.parquet"))
        began = time.perf_counter()
        what = forget(settings, Person("customer_id", "1234"))
        seconds = time.perf_counter() - began
        print(f"forgot in {seconds:.1f} s", flush=True)
        with connect(settings, read_only=True) as connection:
            began = time.perf_counter()
            connection.execute(f"copy training_sets.train_a to '{folder}/once.parquet'")
            once = time.perf_counter() - began
            last = releases(connection)[-1]
            wrong = [name for name, told, now in verify(connection, last.name) if told != now]
        print(
            f"forgot 1 of 20,000 people in {len({n for n, *_ in what.releases})} releases of {ROWS:,}"
            f" rows in {seconds:.1f} s (limit {LIMIT:.0f} s); the lake holds {size / 2**20:,.0f} MiB;"
            f" {seconds / once:.0f} times as long as writing one release ({once:.2f} s)"
        )
    if wrong or seconds > LIMIT or len(what.releases) != RELEASES:
        sys.exit(1)


if __name__ == "__main__":
    main()
