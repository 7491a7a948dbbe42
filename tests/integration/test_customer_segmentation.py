"""Customer segmentation from source systems to segments, on 150 households and three months."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from orchestration.demo import campaign_api, retail_db
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame

ROOT = Path(__file__).resolve().parents[2]
HOUSEHOLDS = 150
TOKEN = "a-token-that-must-not-leak"


class House:
    """A warehouse with its two source systems, and the command line to build it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.database = folder / "retail.sqlite"
        self.settings = load_settings(data_dir=folder / "data")
        self.environment = {
            **{n: v for n, v in os.environ.items() if not n.startswith("WATERSHED_")},
            "WATERSHED_DATA_DIR": str(folder / "data"),
            "WATERSHED_RETAIL_DB_URL": f"sqlite:///{self.database}",
            "WATERSHED_CAMPAIGN_API_URL": self.url,
            "WATERSHED_CAMPAIGN_API_TOKEN": TOKEN,
            "WATERSHED_SEGMENTATION_LAST_MONTH": "2017-03",
            "PYTHONWARNINGS": "ignore",
        }

    def run(self, *command: str, cwd: Path = ROOT, **environment: str):
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def build(self, **environment: str):
        return self.run(f"{Path(sys.executable).parent}/watershed", "build", **environment)

    def rows(self, query: str):
        with connect(self.settings, read_only=True) as connection:
            return read_frame(connection, query).rows()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    retail_db.fill(house.database, households=HOUSEHOLDS)
    with campaign_api.running(house.url, TOKEN, households=HOUSEHOLDS):
        house.first = house.build()
        yield house


def test_source_to_segments_in_one_command(house):
    assert house.first.returncode == 0, house.first.stdout + house.first.stderr
    assert "all is built" in house.first.stdout
    assert "0 failed" in house.first.stdout
    months = house.rows(
        "select as_of_at::date::varchar, count(*), count(distinct household_id)"
        " from predictions.customer_segments group by 1 order by 1"
    )
    assert [month for month, *_ in months] == ["2017-02-01", "2017-03-01", "2017-04-01"]
    for _, households, different in months:
        assert 50 <= households == different <= HOUSEHOLDS


def test_segment_revenue_is_the_months_revenue(house):
    ((segments, sales),) = house.rows(
        """
        select
            (select sum(revenue_usd) from monitoring.mon_segments__monthly),
            (
                select sum(sales_usd) from staging.stg_retail_db__transactions
                where transacted_at < timestamp '2017-04-01'
            )
        """
    )
    assert segments == sales > 0


def test_every_prediction_names_the_trained_model_that_made_it(house):
    assert house.rows(
        """
        select count(*) from predictions.customer_segments as p
        anti join trained_models.customer_segmentation as m
            on p.model_version = m.model_version and p.as_of_at = m.as_of_at
        """
    ) == [(0,)]


def test_a_second_build_does_only_what_is_new(house):
    before = house.rows("from predictions.customer_segments order by all")
    again = house.build()
    assert again.returncode == 0, again.stderr
    assert "stale (0 assets)" in again.stdout
    assert house.rows("from predictions.customer_segments order by all") == before


def test_dbt_builds_by_itself_on_the_same_warehouse(house):
    dbt = f"{Path(sys.executable).parent}/dbt"
    built = house.run(dbt, "build", "--select", "+mon_segments__monthly", cwd=ROOT / "dbt_project")
    assert built.returncode == 0, built.stdout
    assert "ERROR=0" in built.stdout


def test_sql_prints_rows_for_people_and_for_pipes(house):
    watershed = f"{Path(sys.executable).parent}/watershed"
    shown = house.run(watershed, "sql", "--format", "csv", "--", "select 1 as a, 'x,y' as b")
    assert shown.stdout == 'a,b\n1,"x,y"\n'
    wrong = house.run(watershed, "sql", "select * from no_such_table")
    assert wrong.returncode == 1
    assert "no_such_table" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def told(result, *parts: str) -> None:
    """The build stopped with one clear message, no trace, and no secret."""
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    for part in parts:
        assert part in output
    assert "Traceback" not in output
    assert TOKEN not in output


def test_a_wrong_token_names_the_setting(house):
    told(
        house.build(WATERSHED_CAMPAIGN_API_TOKEN="wrong"),
        "WATERSHED_CAMPAIGN_API_TOKEN",
        "a token that the API refuses",
    )


def test_a_bad_row_is_set_aside_with_its_reason_and_the_good_rows_land(house):
    ((before,),) = house.rows("select count(*) from raw.retail_db__transactions")
    line = "insert into transactions values (1, 1, {}, 1, {}, 1.5, 0, 0, 0, '2018-01-02 10:00:00')"
    with closing(sqlite3.connect(house.database)) as database:
        database.execute(line.format(990001, -3))
        database.execute(line.format(990002, 3))
        database.commit()
    result = house.build()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "raw/retail_db__transactions: matches_contract" in result.stdout
    assert house.rows("select count(*) from raw.retail_db__transactions") == [(before + 1,)]
    assert house.rows(
        "select reason, json_extract_string(payload, '$.basket_id')"
        " from quarantine.retail_db__transactions"
    ) == [("quantity: greater_than_or_equal_to(0)", "990001")]


def test_a_column_gone_from_the_source_is_named_and_the_warehouse_stays_as_it_was(house):
    before = house.rows("select * from raw.retail_db__products order by all limit 10")
    with closing(sqlite3.connect(house.database)) as database:
        database.execute("alter table products rename column brand to make")
    try:
        told(house.build(), "retail_db.products: column brand", "contracts/retail_db.py")
    finally:
        with closing(sqlite3.connect(house.database)) as database:
            database.execute("alter table products rename column make to brand")
    assert house.rows("select * from raw.retail_db__products order by all limit 10") == before


def test_no_secret_stands_anywhere_in_the_data_folder(house):
    for path in house.settings.data_dir.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
