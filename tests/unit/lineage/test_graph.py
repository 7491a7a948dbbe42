"""Walks along the graph, and what is shown of them."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime
from xml.etree import ElementTree

import pytest
from rich.console import Console

from orchestration.errors import MendableError
from orchestration.lineage.graph import ROWS, Graph, Landed, Table, Written
from orchestration.lineage.shown import as_openlineage, as_svg, as_tree

SOURCE, RAW, STAGED = "sources.shop__sales", "raw.shop__sales", "staging.stg_shop__sales"
FEATURES, OTHER, TRAINED = "features.feat_sales", "features.feat_other", "training_sets.train_x"
WRITTEN = Written(7, datetime(2026, 1, 2), "r1")
LANDED = Landed("b1", '{"files": {"2026-01.csv": 1, "2026-02.csv": 2}}', datetime(2026, 1, 1))


@pytest.fixture
def graph() -> Graph:
    def copy(name: str, of: str, columns: str, **more) -> Table:
        names = columns.split()
        return Table(
            name, dict.fromkeys(names, "BIGINT"), {c: {(of, c)} for c in names},
            inputs={of}, written=WRITTEN, **more,
        )  # fmt: skip

    columns = "id usd shop is_paid"
    return Graph(
        [
            Table(
                TRAINED, {"id": "BIGINT", "total": "DOUBLE", "n": "BIGINT"},
                {"id": {(FEATURES, "id")}, "total": {(FEATURES, "total")}, "n": {(OTHER, "n")}},
                {(FEATURES, "id"), (OTHER, "id")}, {FEATURES, OTHER},
            ),
            Table(
                FEATURES, {"id": "BIGINT", "total": "DOUBLE"},
                {"id": {(STAGED, "id")}, "total": {(STAGED, "usd")}},
                {(STAGED, "is_paid")}, {STAGED}, written=WRITTEN, code_version="c0de" * 4,
            ),
            Table(OTHER, {"id": "BIGINT", "n": "BIGINT"}, {"n": {(STAGED, "shop")}}, inputs={STAGED}),
            copy(STAGED, RAW, columns),
            copy(RAW, SOURCE, columns, landed=LANDED),
            Table(SOURCE, dict.fromkeys(columns.split(), ""), source=("shop", "Sales & <more>"), landed=LANDED),
            Table("landing.ledger", inputs={RAW}),
        ]
    )  # fmt: skip


def test_values_are_followed_to_the_source_and_what_decides_rows_is_told_apart(graph):
    reached = graph.up(graph.find("training_sets.train_x.total"))
    assert reached.values == {
        (TRAINED, "total"), (FEATURES, "total"), (STAGED, "usd"), (RAW, "usd"), (SOURCE, "usd"),
    }  # fmt: skip
    assert {(FEATURES, "id"), (STAGED, "is_paid"), (SOURCE, "is_paid")} <= reached.rows
    assert (STAGED, "shop") not in reached.values | reached.rows


def test_a_source_column_touches_what_is_computed_from_it_and_the_rows_it_decides(graph):
    reached = graph.down(graph.find("shop.sales.usd"))
    assert {t for t, _ in reached.values} == {SOURCE, RAW, STAGED, FEATURES, TRAINED}
    assert not reached.rows
    reached = graph.down(graph.find("shop.sales.is_paid"))
    assert (FEATURES, "total") in reached.rows
    assert (TRAINED, "n") in reached.rows  # the rows of the training set are others
    assert (OTHER, "n") not in reached.values | reached.rows


def test_a_table_without_columns_is_reached_by_its_rows(graph):
    reached = graph.down(graph.find(RAW))
    assert ("landing.ledger", ROWS) in reached.rows
    assert graph.up(graph.find("landing.ledger")).rows == {(RAW, ROWS), (SOURCE, ROWS)}


def test_the_tree_fits_a_terminal_and_has_each_table_once(graph):
    out = io.StringIO()
    reached = graph.up(graph.find(TRAINED))
    Console(file=out, width=80).print(as_tree(graph, reached))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for table in (TRAINED, FEATURES, OTHER, STAGED, RAW, SOURCE):
        assert sum(bool(re.search(rf"── {table}$|^{table}$", line)) for line in lines) == 1
    told = " ".join(re.sub("[│├└─]", " ", out.getvalue()).split())
    assert "and 1 shown elsewhere: staging.stg_shop__sales" in told
    assert "[Sales & <more> in shop, read to 2026-02.csv (2 files)]" in told
    assert "[r1, snapshot 7, code c0dec0de]" in told


def test_openlineage_has_a_job_per_table_with_columns_schema_and_versions(graph):
    events = [json.loads(e) for e in as_openlineage(graph, graph.up(graph.find(TRAINED)))]
    assert [e["job"]["name"] for e in events] == [RAW, STAGED, OTHER, FEATURES, TRAINED]
    by_table = {e["job"]["name"]: e for e in events}
    for event in events:
        assert event["schemaURL"].endswith("OpenLineage.json#/$defs/JobEvent")
        datetime.strptime(event["eventTime"], "%Y-%m-%dT%H:%M:%S.%fZ")
        for dataset in (*event["inputs"], *event["outputs"]):
            for facet in dataset["facets"].values():
                assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")
                assert facet["_producer"].startswith("urn:watershed:")
    (source,) = by_table[RAW]["inputs"]
    assert (source["namespace"], source["name"]) == ("shop", "Sales & <more>")
    assert source["facets"]["version"]["datasetVersion"] == LANDED.position
    lineage = by_table[FEATURES]["outputs"][0]["facets"]["columnLineage"]
    assert lineage["fields"]["total"]["inputFields"] == [
        {
            "namespace": "watershed", "name": STAGED, "field": "usd",
            "transformations": [{"type": "DIRECT"}],
        }
    ]  # fmt: skip
    assert [one["field"] for one in lineage["dataset"]] == ["is_paid"]


def test_the_picture_is_an_svg_with_a_box_per_table(graph):
    picture = ElementTree.fromstring(as_svg(graph, graph.up(graph.find(TRAINED))))
    titles = {
        (title.text or "").splitlines()[0]
        for title in picture.iter("{http://www.w3.org/2000/svg}title")
    }
    assert titles == {TRAINED, FEATURES, OTHER, STAGED, RAW, SOURCE}


def test_an_unknown_name_is_told_with_what_is_near(graph):
    with pytest.raises(MendableError, match=r"such as features\.feat_sales"):
        graph.find("features.feat_sale")
    with pytest.raises(MendableError, match="total"):
        graph.find("features.feat_sales.totl")
