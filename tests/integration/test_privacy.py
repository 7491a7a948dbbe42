"""In a built house no column hides what it tells of a person, and the schema masked tells of none."""

from __future__ import annotations

import json

from orchestration.build import prepare_dagster_home, prepare_manifest
from orchestration.lineage.graph import read_graph
from orchestration.warehouse.connect import connect
from orchestration.warehouse.privacy import follow, said, tags


def test_what_was_built_has_no_column_that_hides_a_person_python_steps_included(house):
    manifest = json.loads(prepare_manifest("compile", "target/lineage").read_bytes())
    graph = read_graph(house.settings)
    assert graph.tables[
        "predictions.customer_segments"
    ].values  # as Dagster was told when it was built
    assert [str(leak) for leak in follow(graph, said(manifest)).leaks] == []


def test_the_views_of_masked_are_those_of_published_without_its_identifiers(house):
    with connect(house.settings, read_only=True) as connection:
        views = {
            schema: {
                name
                for (name,) in connection.execute(
                    "select view_name from duckdb_views() where schema_name = ?", [schema]
                ).fetchall()
            }
            for schema in ("published", "masked")
        }
        assert views["masked"] == views["published"]
        for table, columns in tags().items():
            name = table.partition(".")[2]
            if name not in views["masked"]:
                continue
            for column, tag in columns.items():
                exact, shown = connection.execute(
                    f"select count({column}), (select count({column}) from masked.{name})"
                    f" from published.{name}"
                ).fetchall()[0]
                assert shown == (0 if tag == "direct_identifier" else shown), f"{table}.{column}"
                assert tag != "sensitive" or shown == exact, f"{table}.{column}"


def test_the_graph_shows_what_a_column_tells(house):
    import dagster as dg  # noqa: TID251

    prepare_dagster_home(house.settings)
    with dg.DagsterInstance.get() as instance:
        for table, column, tag in (
            ("raw.payments_lake__payments", "customer_id", "direct_identifier"),
            ("features.feat_payment__windows", "amount", "sensitive"),
            ("trained_models.fraud_detection", "parameters", None),
            ("predictions.fraud_backtest", "transaction_at", "quasi_identifier"),
        ):
            event = instance.get_latest_materialization_event(dg.AssetKey(table.split(".")))
            schema = event.asset_materialization.metadata["dagster/column_schema"].schema
            found = next(one.tags for one in schema.columns if one.name == column)
            assert found == ({"privacy": tag} if tag else {}), table
