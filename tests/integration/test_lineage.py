"""Lineage is right: what moves when a raw column is perturbed is what `lineage --down` had named."""

from __future__ import annotations

import json
import shutil

import pytest

from orchestration.lineage.graph import ROWS, read_graph
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from tests.integration.small_house import BIN, ROOT

KEEPING_ROWS = {
    "raw.retail_db__transactions.sales_value": "sales_value * 2 + 1",
    "raw.retail_db__demographics.income": "'other ' || income",
    "raw.payments_lake__payments.amount": "amount + 7",
}
"""Columns that no condition, join or group stands on: nothing moves but what comes of their values."""
DECIDING_ROWS = {
    "raw.retail_db__products.department": "'other ' || department",
    "raw.campaign_api__mailings.published_at": "published_at + interval 40 days",
    "raw.payments_lake__payments.is_fraud": "is_fraud or transaction_id % 50 = 0",
}


def test_what_moves_with_a_raw_column_is_what_the_lineage_names(house, tmp_path):
    data = tmp_path / "copy"
    data.mkdir()
    for name in ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"):
        if (house.settings.data_dir / name).exists():
            shutil.copy(house.settings.data_dir / name, data / name)
    shutil.copytree(house.settings.data_dir / "lake", data / "lake")
    copy = load_settings(data_dir=data)
    graph = read_graph(house.settings)

    def build() -> None:
        done = house.run(
            BIN / "dbt", "--quiet", "run", "--select", "+path:models/training_sets",
            cwd=ROOT / "dbt_project", WATERSHED_DATA_DIR=str(data),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    build()  # what others have landed meanwhile is not to be taken for what moves
    before = hashes(copy)
    for columns, by_value_alone in ((KEEPING_ROWS, True), (DECIDING_ROWS, False)):
        for column, expression in columns.items():
            table, _, name = column.rpartition(".")
            with connect(copy) as connection:
                connection.execute(f"update {table} set {name} = {expression}")
        build()
        after = hashes(copy)
        moved = {c for c in after if after[c] != before[c] and not c[0].startswith("raw.")}
        named = set()
        for column in columns:
            reached = graph.down(graph.find(column))
            told = reached.values if by_value_alone else reached.values | reached.rows
            named |= told
            mine = {c for c in moved & told if c[0].startswith("training_sets.")}
            assert mine, f"{column} moved nothing in a training set"
        assert moved <= named, sorted(moved - named)
        assert set(after) - named, "something that it does not touch"
        before = after


def hashes(settings) -> dict[tuple[str, str], tuple]:
    """Every column of every table that dbt builds or that landed, as a hash of its values with their key."""
    manifest = json.loads((ROOT / "dbt_project/target/lineage/manifest.json").read_bytes())
    keys = {}
    for node in manifest["nodes"].values():
        told = node.get("test_metadata") or {"name": ""}
        if told["name"] in ("unique", "has_unique_key") and node["attached_node"]:
            one, arguments = manifest["nodes"][node["attached_node"]], told["kwargs"]
            key = arguments.get("columns") or [arguments["column_name"]]
            keys[f"{one['schema']}.{one['name']}"] = key
    found = {}
    with connect(settings, read_only=True) as connection:
        tables: dict[str, list[str]] = {}
        for schema, table, column in connection.execute(
            "select schema_name, table_name, column_name from duckdb_columns()"
            " where database_name = current_database() and schema_name in"
            " ('raw', 'staging', 'intermediate', 'features', 'training_sets')"
        ).fetchall():
            tables.setdefault(f"{schema}.{table}", []).append(column)
        for table, columns in tables.items():
            key = keys.get(table, [])
            parts = [
                f"sum(hash({', '.join(dict.fromkeys([*key, column]))})::hugeint)"
                for column in columns
            ]
            row = connection.execute(f"select {', '.join(parts)}, count(*) from {table}").fetchone()
            found |= {
                (table, column): (told, row[-1]) for column, told in zip(columns, row, strict=False)
            }
    return found


def test_a_prediction_is_traced_to_the_columns_of_its_sources(house):
    graph = read_graph(house.settings)
    reached = graph.up(graph.find("predictions.fraud_backtest.score"))
    tables = {table for table, _ in reached.values}
    assert {"trained_models.fraud_detection", "training_sets.train_fraud_detection"} & tables
    assert ("sources.payments_lake__payments", "amount") in reached.values
    assert ("sources.payments_lake__payments", "is_fraud") in reached.values | reached.rows
    lake = graph.tables["sources.payments_lake__payments"]
    assert lake.source == ("payments_lake", "payments")
    assert ".parquet" in lake.landed.position
    assert graph.tables["training_sets.train_fraud_detection"].written.release
    assert not {c for c in reached.values if c[1] == ROWS}


def test_every_column_that_dbt_or_python_fills_has_a_lineage(house):
    graph = read_graph(house.settings)
    without = [
        name
        for name, table in graph.tables.items()
        if name.partition(".")[0] in ("staging", "intermediate", "features", "training_sets")
        and (set(table.columns) - set(table.values) or not table.inputs)
    ]
    assert not without


@pytest.mark.parametrize("form", ["text", "openlineage", "svg"])
def test_the_command_shows_it(house, form):
    shown = house.watershed(
        "lineage", "retail_db.transactions.sales_value", "--down", "--format", form
    )
    assert shown.exit_code == 0, shown.output
    assert "int_baskets__summed" in shown.output
    if form == "openlineage":
        for line in shown.output.splitlines():
            event = json.loads(line)
            assert {"eventTime", "producer", "schemaURL", "job"} <= event.keys()
            (output,) = event["outputs"]
            facet = output["facets"]["columnLineage"]
            assert {"_producer", "_schemaURL", "fields"} <= facet.keys()
            for column in facet["fields"].values():
                for source in column["inputFields"]:
                    assert {"namespace", "name", "field"} <= source.keys()


def test_a_name_that_is_not_there_is_told_with_what_is_near(house):
    from tests.integration.small_house import assert_told

    assert_told(house.watershed("lineage", "raw.retail_db__transactions.sale"), "sales_value")
    assert_told(house.watershed("lineage", "raw.nothing"), "a table")


def test_dagster_shows_the_same_columns(house):
    from orchestration.build import last_materialized

    told = last_materialized(house.settings)
    graph = read_graph(house.settings)
    models = [name for name in graph.tables if name.partition(".")[0] in ("staging", "features")]
    assert models
    for name in models:
        assert told[name].columns == graph.tables[name].values, name
