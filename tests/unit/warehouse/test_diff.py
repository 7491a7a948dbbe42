"""Differences between releases: counted as a person would by hand, and none where nothing is different."""

from __future__ import annotations

from collections import Counter

import duckdb
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestration.errors import MendableError
from orchestration.warehouse.connect import connect
from orchestration.warehouse.diff import as_markdown, as_text, compare, diff, unique_keys
from orchestration.warehouse.releases import release

KEYS = {"features.feat_a": ("id",)}


@pytest.fixture
def lake(settings):
    with connect(settings) as connection:
        connection.execute("create schema features; create schema monitoring")
        connection.execute(
            "create table features.feat_a as select range as id, range * 2 as amount,"
            " 'kind ' || range % 3 as kind, 1 as old from range(100)"
        )
        connection.execute("create table features.feat_b as select 1 as id")
        connection.execute(
            "create table monitoring.mon_a__metrics as select timestamp '2026-01-01' as as_of_at,"
            " unnest(['auc', 'rmse']) as metric, unnest([0.7, 3.0]) as value"
        )
        release(connection, settings, checks_passed=1, checks_warned=0)
        yield connection


def test_rows_are_counted_by_key_and_columns_by_the_rows_they_changed_in(lake, settings):
    lake.execute("delete from features.feat_a where id < 10")
    lake.execute("update features.feat_a set amount = amount + 100 where id >= 80")
    lake.execute("insert into features.feat_a values (200, 7, 'kind 0', 1), (201, 7, 'kind 1', 1)")
    release(lake, settings, checks_passed=1, checks_warned=0)
    for after in ("r2", "now"):
        first, *others = diff(lake, "r1", after, KEYS)
        assert first.table == "features.feat_a"
        assert (first.added, first.removed, first.changed) == (2, 10, 20)
        assert first.key == ("id",)
        (amount, *_) = first.columns
        assert (amount.name, amount.rows_changed) == ("amount", 20)
        assert amount.before.mean == 99
        assert amount.after.mean == pytest.approx(
            (sum(2 * i + 100 * (i >= 80) for i in range(10, 100)) + 14) / 92
        )
        assert all(one.is_same for one in others)
        assert "old" not in {column.name for column in first.columns}


def test_a_diff_the_other_way_round_is_its_mirror(lake, settings):
    lake.execute("delete from features.feat_a where id < 10")
    release(lake, settings, checks_passed=1, checks_warned=0)
    (first, *_) = diff(lake, "r2", "r1", KEYS)
    assert (first.added, first.removed, first.changed) == (10, 0, 0)


def test_columns_added_removed_and_retyped_are_told(lake):
    lake.execute(
        "create or replace table features.feat_a as select id, cast(amount as double) as amount,"
        " id % 3 as kind, 2 as new from features.feat_a"
    )
    (first,) = diff(lake, "r1", "now", KEYS, table="feat_a")
    assert first.shape == [
        "+ new INTEGER", "amount BIGINT -> DOUBLE", "kind VARCHAR -> BIGINT", "- old INTEGER",
    ]  # fmt: skip
    assert {column.name: column.rows_changed for column in first.columns} == {"kind": 100}


def test_tables_that_are_new_or_gone_are_told(lake):
    lake.execute("drop table features.feat_b")
    lake.execute("create table features.feat_c as select 1 as id from range(3)")
    found = {one.table: one for one in diff(lake, "r1", "now", KEYS)}
    assert found["features.feat_b"].shape == ["the table is gone"]
    assert (found["features.feat_c"].shape, found["features.feat_c"].added) == (
        ["the table is new"],
        3,
    )


def test_a_metric_is_told_by_its_last_value(lake):
    lake.execute(
        "insert into monitoring.mon_a__metrics values"
        " ('2026-02-01', 'auc', 0.8), ('2025-01-01', 'rmse', 9)"
    )
    (first, *_) = diff(lake, "r1", "now", {})
    (metric,) = first.metrics
    assert (metric.metric, metric.before, metric.after) == ("auc", 0.7, 0.8)


def test_a_key_that_is_not_unique_is_none(lake):
    lake.execute("insert into features.feat_a values (1, 2, 'kind 1', 1)")
    (first,) = diff(lake, "r1", "now", KEYS, table="features.feat_a")
    assert (first.key, first.added, first.removed) == ((), 1, 0)


def test_texts_that_few_rows_hold_are_not_told(lake):
    lake.execute("update features.feat_a set kind = 'rare' where id < 4")
    lake.execute("update features.feat_a set kind = 'frequent' where id > 90")
    (first,) = diff(lake, "r1", "now", KEYS, table="feat_a")
    (kind,) = first.columns
    assert "frequent" in {text for text, *_ in kind.texts}
    assert "rare" not in as_text("r1", "now", [first])


def test_what_is_told_names_what_is_different_and_nothing_else(lake):
    assert as_text("r1", "now", diff(lake, "r1", "now", KEYS)) == (
        "r1 to now: none of 3 tables differ"
    )
    lake.execute("update features.feat_a set amount = 0 where id = 3")
    found = diff(lake, "r1", "now", KEYS)
    for told in (as_text("r1", "now", found), as_markdown("r1", "now", found)):
        assert "features.feat_a" in told
        assert "amount in 1 rows" in told
        assert "feat_b" not in told


def test_an_unknown_release_or_table_is_told_in_words(lake):
    with pytest.raises(MendableError, match="release r7"):
        diff(lake, "r1", "r7", KEYS)
    with pytest.raises(MendableError, match="feat_a"):
        diff(lake, "r1", "now", KEYS, table="feat_z")


def test_keys_are_what_tests_of_dbt_say_is_unique():
    def tested(name: str, **arguments) -> dict:
        return {
            "attached_node": "model.a",
            "test_metadata": {"name": name, "kwargs": {"model": "...", **arguments}},
        }

    model = {"schema": "features", "name": "feat_a"}
    nodes = {"model.a": model, "test.1": tested("has_unique_key", columns=["id", "as_of_at"])}
    assert unique_keys({"nodes": nodes, "sources": {}}) == {"features.feat_a": ("id", "as_of_at")}
    nodes["test.2"] = tested("unique", column_name="row_id")
    nodes["test.3"] = tested("not_null", column_name="x")
    assert unique_keys({"nodes": nodes, "sources": {}}) == {"features.feat_a": ("row_id",)}


values = st.one_of(st.none(), st.integers(0, 3))
rows = st.lists(
    st.tuples(st.integers(0, 8), values, st.sampled_from(["a", "b", None])), max_size=12
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(before=rows, after=rows)
def test_counts_are_those_of_a_count_by_hand(before, after):
    def table(name: str, rows) -> str:
        database.execute(f"create or replace table {name} (id bigint, n bigint, text varchar)")
        if rows:
            places = ", ".join(["(?, ?, ?)"] * len(rows))
            database.execute(
                f"insert into {name} values {places}", [v for row in rows for v in row]
            )
        return name

    with duckdb.connect() as database:
        found = compare(database, "t", table("b", before), table("a", after))
        more, fewer = Counter(after) - Counter(before), Counter(before) - Counter(after)
        assert (found.added, found.removed) == (more.total(), fewer.total())

        was, is_now = ({row[0]: row for row in side} for side in (before, after))
        b, a = table("b", list(was.values())), table("a", list(is_now.values()))
        found = compare(database, "t", b, a, ("id",))
        both = was.keys() & is_now.keys()
        assert found.key == ("id",)
        assert (found.added, found.removed) == (len(is_now.keys() - both), len(was.keys() - both))
        assert found.changed == sum(was[i] != is_now[i] for i in both)
        told = {column.name: column.rows_changed for column in found.columns}
        for place, column in ((1, "n"), (2, "text")):
            assert (told.get(column) or 0) == sum(was[i][place] != is_now[i][place] for i in both)

        for key in ((), ("id",)):
            same = compare(database, "t", a, a, key)
            assert same.is_same
            assert not same.columns
