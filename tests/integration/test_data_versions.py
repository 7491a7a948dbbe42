"""Data versions: what holds the same rows keeps its version, and nothing downstream of it runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from orchestration.build import last_materialized
from tests.integration.small_house import BIN, ROOT


def versions(house) -> dict[str, str | None]:
    return {name: one.data_version for name, one in last_materialized(house.settings).items()}


def materialized_at(house) -> dict[str, float]:
    import dagster as dg  # noqa: TID251

    with dg.DagsterInstance.from_config(str(house.settings.dagster_home)) as instance:
        return {
            ".".join(
                record.asset_entry.asset_key.path
            ): record.asset_entry.last_materialization.timestamp
            for record in instance.get_asset_records()
            if record.asset_entry.last_materialization
        }


@pytest.fixture
def built(house):
    """The house with nothing stale, whatever other tests have changed in its sources."""
    assert house.watershed("build").exit_code == 0
    return house


def test_what_is_below_unchanged_data_does_not_run_though_more_has_landed(built):
    before, versions_before = materialized_at(built), versions(built)
    with closing(sqlite3.connect(built.database)) as database:
        columns = [name for _, name, *_ in database.execute("pragma table_info(products)")]
        row = dict.fromkeys(columns) | {
            "product_id": 99_999_999,
            "manufacturer_id": 1,
            "brand": "National",
        }
        database.execute(
            f"insert into products ({', '.join(row)}) values ({', '.join('?' * len(row))})",
            list(row.values()),
        )
        database.commit()
    again = built.watershed("build")
    assert again.exit_code == 0, again.output
    now, versions_now = materialized_at(built), versions(built)
    ran = {name for name in now if now[name] > before.get(name, 0)}
    changed = {name for name in versions_now if versions_now[name] != versions_before.get(name)}
    # A product that nobody has bought: it is in the catalogue, and in nothing that is counted from purchases.
    assert {"raw.retail_db__products", "staging.stg_retail_db__products"} <= ran & changed
    assert "features.feat_household__category_mix" not in changed
    below = {
        name
        for name in ran
        if name.startswith(("training_sets.", "trained_models.", "predictions."))
    }
    assert not below
    assert all(version for version in versions_now.values())


def test_dbt_writes_nothing_where_nothing_differs_and_only_the_difference_where_it_does(built):
    def run() -> str:
        told = built.run(
            BIN / "dbt", "run", "--select", "stg_retail_db__transactions", cwd=ROOT / "dbt_project"
        )
        assert told.returncode == 0, told.stdout
        return told.stdout

    files = "select count(*), sum(data_file_size_bytes) from ducklake_list_files('lake', '{}', schema => 'staging')"
    files = files.format("stg_retail_db__transactions")
    before = built.rows(files)
    content = built.rows(
        "select count(*), sum(hash(t)) from staging.stg_retail_db__transactions as t"
    )
    assert "UNCHANGED" in run()
    assert built.rows(files) == before
    from orchestration.warehouse.connect import connect

    with connect(built.settings) as connection:
        connection.execute(
            "update staging.stg_retail_db__transactions set quantity = quantity + 1"
            " where product_id = (select min(product_id) from staging.stg_retail_db__transactions)"
        )
        connection.execute(
            "insert into staging.stg_retail_db__transactions"
            " from staging.stg_retail_db__transactions limit 20"  # twice what is there once
        )
    assert built.rows(files) != before
    assert "UNCHANGED" not in run()
    assert (
        built.rows("select count(*), sum(hash(t)) from staging.stg_retail_db__transactions as t")
        == content
    )
    assert "UNCHANGED" in run()
