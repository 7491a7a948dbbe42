"""A person went through a whole build: what stands beside the warehouse never held them, and then nothing does."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import duckdb

from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from tests.integration.small_house import CANARY, ROOT
from tests.integration.test_secrets import sqlite_values


def test_a_person_is_gone_from_the_warehouse_and_never_was_in_what_stands_beside_it(
    house, tmp_path
):
    """Dagster's history and logs, MLflow's store, the build's log, alerts and dbt's folders stand beside it."""
    data = tmp_path / "data"
    shutil.copytree(house.settings.data_dir, data, ignore=shutil.ignore_patterns("demo", "*.lock"))
    with closing(sqlite3.connect(house.database)) as database:
        baskets = database.execute(
            f"select distinct basket_id from transactions where household_id = {CANARY}"
        ).fetchall()
    assert len(baskets) > 5
    numbers = [CANARY, *(basket for (basket,) in baskets)]
    dbt = [*(ROOT / "dbt_project/target").rglob("*"), *(ROOT / "dbt_project/logs").rglob("*")]
    everything = [path for path in data.rglob("*") if path.is_file()]
    warehouse = {path for path in everything if path.relative_to(data).parts[0] == "lake"}
    warehouse |= set(data.glob("catalog.sqlite*"))
    beside = [path for path in everything if path not in warehouse]
    assert {"dagster", "mlflow.db", "build.log"} <= {p.relative_to(data).parts[0] for p in beside}
    assert held([*beside, *dbt], numbers) == set()
    assert held(warehouse, numbers)
    assert not any(str(number) in house.first.stdout + house.first.stderr for number in numbers)

    gone = house.watershed("forget", "household_id", str(CANARY), WATERSHED_DATA_DIR=str(data))
    assert gone.exit_code == 0, gone.output
    assert "predictions.customer_segments" in gone.output
    assert "intermediate.int_baskets__summed" in gone.output
    assert not any(str(number) in gone.output for number in numbers)
    assert held([*data.rglob("*"), *dbt], numbers) == set()
    with connect(load_settings(data_dir=data), read_only=True) as connection:
        (left,) = connection.execute(
            "select count(distinct household_id) from predictions.customer_segments"
        ).fetchone()
    ((before,),) = house.rows(
        "select count(distinct household_id) from predictions.customer_segments"
    )
    assert left == before - 1
    verified = house.watershed("verify", "latest", WATERSHED_DATA_DIR=str(data))
    assert verified.exit_code == 0, verified.output
    assert "rows of a person were erased" in verified.output


def held(paths, numbers):
    """The files that hold one of the numbers: in their bytes, in SQLite's values, or once read as Parquet."""
    shapes = [*(str(n).encode() for n in numbers), *(n.to_bytes(8, "little") for n in numbers)]
    found = set()
    with duckdb.connect() as connection:
        for path in paths:
            if not path.is_file():
                continue
            content = path.read_bytes()
            if content.startswith(b"SQLite format 3"):
                content += b"\0".join(sqlite_values(path))
            elif content[-4:] == b"PAR1":
                rows = connection.execute(f"from read_parquet('{path}')").fetchall()
                content += str(rows).encode()
            if any(shape in content for shape in shapes):
                found.add(path.name)
    return found
