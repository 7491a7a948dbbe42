"""Customer segmentation from source systems to segments, on 150 households and three months."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.integration.small_house import BIN, HOUSEHOLDS, ROOT, assert_told


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
            on p.model_version = m.model_version and p.as_of_at >= m.as_of_at
        """
    ) == [(0,)]


def test_a_second_build_does_only_what_is_new(house):
    before = house.rows("from predictions.customer_segments order by all")
    again = house.watershed("build")
    assert again.exit_code == 0, again.output
    assert "stale (0 assets)" in again.output
    assert house.rows("from predictions.customer_segments order by all") == before


def test_dbt_builds_by_itself_on_the_same_warehouse(house):
    project = ROOT / "dbt_project"
    built = house.run(BIN / "dbt", "build", "--select", "+mon_segments__monthly", cwd=project)
    assert built.returncode == 0, built.stdout
    assert "ERROR=0" in built.stdout


def test_sql_prints_rows_for_people_and_for_pipes(house):
    shown = house.run(
        BIN / "watershed", "sql", "--format", "csv", "--", "select 1 as a, 'x,y' as b"
    )
    assert shown.stdout == 'a,b\n1,"x,y"\n'
    wrong = house.watershed("sql", "select * from no_such_table")
    assert_told(wrong, "no_such_table", "show all tables")


def test_a_bad_row_is_set_aside_with_its_reason_and_the_good_rows_land(house, monkeypatch):
    ((before,),) = house.rows("select count(*) from raw.retail_db__transactions")
    line = "insert into transactions values (1, 1, {}, 1, {}, 1.5, 0, 0, 0, '2018-01-02 10:00:00')"
    with closing(sqlite3.connect(house.database)) as database:
        database.execute(line.format(990001, -3))
        database.execute(line.format(990002, 3))
        database.commit()
    stale, checks = house.materialize("raw/retail_db__transactions", monkeypatch)
    assert house.rows("select count(*) from raw.retail_db__transactions") == [(before + 1,)]
    assert house.rows(
        "select reason, json_extract_string(payload, '$.basket_id')"
        " from quarantine.retail_db__transactions"
    ) == [("quantity: greater_than_or_equal_to(0)", "990001")]
    assert checks == {"matches_contract": False, "keeps_its_shape": True, "adds_up": True}
    # What the next build would build: all that reads them, and nothing else.
    assert {"staging/stg_retail_db__transactions", "predictions/customer_segments"} <= stale
    assert not {"staging/stg_campaign_api__campaigns", "seeds/metric_targets"} & stale
