"""Tags follow the lineage: nothing that comes of a tagged column is left without a word about persons."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.build import prepare_manifest
from orchestration.errors import MendableError
from orchestration.lineage.graph import Graph, Table, described_graph
from orchestration.lineage.query import sources_of
from orchestration.warehouse.privacy import (
    DIRECT,
    NONE,
    QUASI,
    SENSITIVE,
    TAGS,
    Said,
    follow,
    said,
    tags,
)

RAW = "raw.shop__sales"
COLUMNS = {"card_id": DIRECT, "sold_at": QUASI, "usd": SENSITIVE, "till": None}


def house(sql: str, written: dict[str, Said] | None = None, **more: str) -> tuple[Graph, dict]:
    """A raw table and a model of the SQL over it, and further ones by name."""
    tables = [Table(RAW, dict.fromkeys(COLUMNS, "BIGINT"))]
    for name, query in {"features.feat": sql, **more}.items():
        name = name.replace("__", ".", 1)
        found = sources_of(query, {one.name: one.columns for one in tables})
        tables.append(
            Table(
                name, dict.fromkeys(found.values, "BIGINT"), found.values, found.rows, found.tables,
                carried=found.carried, copied=found.copied,
            )
        )  # fmt: skip
    said_of_raw = {(RAW, column): Said(tag) for column, tag in COLUMNS.items()}
    words = {tuple(name.rsplit("/", 1)): one for name, one in (written or {}).items()}
    return Graph(tables), said_of_raw | words


def tag_of(sql: str, **written: Said) -> tuple[str, list[str]]:
    """The tag of column `x` of a model of the SQL over the raw table, and the leaks."""
    found = follow(*house(sql, {f"features.feat/{c}": one for c, one in written.items()}))
    return found.columns["features.feat"]["x"], [leak.column for leak in found.leaks]


@pytest.mark.parametrize(
    ("sql", "tag"),
    [
        ("select card_id as x from raw.shop__sales", DIRECT),
        ("select cast(card_id as varchar) as x from raw.shop__sales", DIRECT),
        ("with a as (select (sold_at) as b from raw.shop__sales) select b as x from a", QUASI),
        ("select usd as x from raw.shop__sales union all select sold_at from raw.shop__sales", QUASI),
        ("select coalesce(usd, till) as x from raw.shop__sales", SENSITIVE),
        ("select till + 1 as x from raw.shop__sales", NONE),
        ("select count(till) over (order by till) as x from raw.shop__sales", NONE),
    ],
)  # fmt: skip
def test_a_copy_has_the_tag_of_what_it_copies_without_a_word(sql, tag):
    assert tag_of(sql) == (tag, [])


@pytest.mark.parametrize(
    "computed",
    [
        "usd + till", "sum(usd)", "count(distinct card_id)", "count(*) over (partition by card_id)",
        "card_id is null", "coalesce(usd, 0)", "(select max(usd) from raw.shop__sales)",
        "sum(till) over (order by sold_at)", "sum(till) filter (where usd > 0)",
    ],
)  # fmt: skip
def test_what_is_computed_from_a_tagged_column_says_its_own_tag(computed):
    sql = f"select {computed} as x from raw.shop__sales"
    assert tag_of(sql)[1] == ["features.feat.x"]
    assert tag_of(sql, x=Said(SENSITIVE)) == (SENSITIVE, [])
    assert tag_of(sql, **{"": Said(SENSITIVE)}) == (SENSITIVE, [])  # once for the model
    assert tag_of(sql, x=Said(NONE))[1] == ["features.feat.x"]  # says less, and not why
    assert tag_of(sql, x=Said(NONE, "of all cards together")) == (NONE, [])


@pytest.mark.parametrize(
    "hidden",
    [
        "card_id + 0", "md5(card_id)", "max(card_id)", "list(card_id)", "max_by(card_id, usd)",
        "case when usd > 0 then card_id end", "lag(card_id) over (order by sold_at)",
        "(select max(card_id) from raw.shop__sales)",
    ],
)  # fmt: skip
def test_what_an_identifier_can_be_read_off_is_one_whatever_the_model_says(hidden):
    sql = f"select {hidden} as x from raw.shop__sales"
    for whole in (Said(SENSITIVE), Said(NONE, "of all cards together")):
        assert tag_of(sql, **{"": whole}) == (DIRECT, ["features.feat.x"])
    assert tag_of(sql, x=Said(SENSITIVE))[1] == ["features.feat.x"]
    assert tag_of(sql, x=Said(DIRECT)) == (DIRECT, [])
    assert tag_of(sql, x=Said(SENSITIVE, "a keyed hash")) == (SENSITIVE, [])


def test_a_copy_says_less_only_with_a_reason():
    for column, less in (("card_id", QUASI), ("card_id", NONE), ("sold_at", SENSITIVE)):
        sql = f"select {column} as x from raw.shop__sales"
        assert tag_of(sql, x=Said(less))[1] == ["features.feat.x"]
        assert tag_of(sql, x=Said(less, "it is a card of the shop's own")) == (less, [])


def test_a_leak_names_the_column_where_its_tag_comes_from_and_the_line_to_add():
    graph, written = house(
        "select sold_at as at from raw.shop__sales",
        {"training_sets.train/hour": Said(file="models/train.yml")},
        training_sets__train="select date_part('hour', at) as hour from features.feat",
    )
    (leak,) = follow(graph, written).leaks
    assert str(leak) == (
        "models/train.yml: training_sets.train.hour comes from features.feat.at"
        " (quasi_identifier of raw.shop__sales.sold_at);"
        " add config: {meta: {privacy: quasi_identifier | sensitive}}, or none and a privacy_reason"
    )


def test_a_table_that_python_fills_says_it_itself():
    table = Table("predictions.said", {"card_id": "BIGINT", "score": "DOUBLE"})
    graph = Graph([Table(RAW, dict.fromkeys(COLUMNS, "BIGINT")), table])
    raw = {(RAW, column): Said(tag) for column, tag in COLUMNS.items()}

    def leaks(**words: Said) -> list[str]:
        named = {("predictions.said", ""): Said()} | {
            ("predictions.said", "" if name == "whole" else name): one
            for name, one in words.items()
        }
        return [leak.column for leak in follow(graph, raw | named).leaks]

    assert leaks() == ["predictions.said", "predictions.said.card_id"]
    untold = follow(graph, raw | {("predictions.said", ""): Said()}).columns
    assert untold["predictions.said"] == {"card_id": DIRECT}  # so masked shows nothing of the other
    assert leaks(whole=Said(SENSITIVE)) == ["predictions.said.card_id"]
    assert leaks(whole=Said(NONE)) == ["predictions.said.card_id", "predictions.said.score"]
    assert leaks(whole=Said(SENSITIVE), card_id=Said(DIRECT)) == []


@given(data=st.data())
def test_a_word_taken_back_anywhere_is_missed_there_and_a_new_tag_wherever_it_comes_to(data):
    """Random lineages: each column is a copy of an earlier one, computed from some, or from nothing."""
    names = [f"c{number:02}" for number in range(data.draw(st.integers(2, 12)))]
    tables, written = [], {}
    for place, name in enumerate(names):
        earlier = [(f"features.{one}", one) for one in names[:place]]
        sources = (
            set(data.draw(st.lists(st.sampled_from(earlier), max_size=3))) if earlier else set()
        )
        is_copy = len(sources) == 1 and data.draw(st.booleans())
        if not sources:
            raw = f"raw.{name}"
            tables.append(Table(raw, {name: "BIGINT"}))
            written[raw, name] = Said(data.draw(st.sampled_from([None, *TAGS])))
            sources, is_copy = {(raw, name)}, True
        tables.append(
            Table(
                f"features.{name}", {name: "BIGINT"}, {name: sources}, inputs={t for t, _ in sources},
                carried={name: set()}, copied={name: sources if is_copy else set()},
            )
        )  # fmt: skip
    graph = Graph(tables)
    while leaks := follow(graph, written).leaks:  # mend the first, and look again
        table, _, column = leaks[0].column.rpartition(".")
        tag = data.draw(st.sampled_from([QUASI, SENSITIVE, NONE]))
        written[table, column] = Said(tag, "because" if tag == NONE else None)
    own = [column for column in written if not column[0].startswith("raw.")]
    for column in own:
        without = {name: one for name, one in written.items() if name != column}
        named = {leak.column for leak in follow(graph, without).leaks}
        below = {".".join(c) for c in graph.down(frozenset({column})).values - set(own)}
        assert ".".join(column) in named
        assert named <= below | {".".join(column)}
    for column in [c for c in written if c not in own and written[c].tag is None]:
        tagged = follow(graph, written | {column: Said(SENSITIVE)})
        below = {c for c in graph.down(frozenset({column})).values if c[0].startswith("features.")}
        for leak in tagged.leaks:
            table, _, name = leak.column.rpartition(".")
            assert (table, name) in below - set(own)
        for table, name in below - set(
            own
        ):  # those that only words of others keep it from are none
            reached = any(tagged.columns[t][c] != NONE for t, c in graph.tables[table].values[name])
            assert (tagged.columns[table][name] != NONE) == reached


@pytest.fixture(scope="module")
def project() -> tuple[Graph, dict]:
    manifest = json.loads(prepare_manifest("compile", "target/lineage").read_bytes())
    return described_graph(manifest), said(manifest)


def test_the_project_leaves_nothing_unsaid_and_says_nothing_in_vain(project):
    graph, written = project
    assert [str(leak) for leak in follow(graph, written).leaks] == []
    for (table, column), one in written.items():
        if one.tag is None or table.startswith("raw.") or not graph.tables[table].inputs:
            continue
        silent = follow(graph, written | {(table, column): replace(one, tag=None, reason=None)})
        named = {leak.column for leak in silent.leaks}
        columns = [column] if column else graph.tables[table].columns
        below = graph.down(frozenset((table, each) for each in columns)).values
        assert named <= {".".join(each) for each in below}
        changed = silent.columns[table] != follow(graph, written).columns[table]
        assert named or changed, f"{table}.{column} need not say {one.tag}"


def test_every_identifier_of_a_source_is_one_in_every_table_it_comes_to(project):
    graph, _ = project
    people = {"household_id", "customer_id"}
    for table in graph.tables.values():
        for column in people & set(table.columns) if table.source is None else ():
            assert tags()[table.name][column] == DIRECT, table.name
    assert {t for t, c in tags().items() if DIRECT in c.values()} >= {
        "raw.retail_db__transactions", "predictions.customer_segments", "predictions.payment_scores",
        "training_sets.train_fraud_detection", "training_sets.train_customer_segmentation",
    }  # fmt: skip
    assert not [table for table in tags() if "plant" in table or "machine" in table]


def test_a_tag_that_is_none_of_those_there_are_is_named():
    node = {
        "resource_type": "model", "schema": "features", "alias": "feat", "name": "feat",
        "original_file_path": "models/feat.sql", "patch_path": "watershed://models/feat.yml",
        "columns": {"id": {"config": {"meta": {"privacy": "secret"}}}}, "config": {"meta": {}},
    }  # fmt: skip
    with pytest.raises(
        MendableError, match=r"feat\.yml: privacy of features\.feat\.id[\s\S]*secret"
    ):
        said({"nodes": {"a": node}, "sources": {}})
