"""Lineage of a query: values, and what decides which rows there are."""

from __future__ import annotations

import pytest

from orchestration.errors import MendableError
from orchestration.lineage.query import sources_of

COLUMNS = {
    "s.t": {"id": "BIGINT", "a": "BIGINT", "b": "BIGINT", "at": "TIMESTAMP", "xs": "BIGINT[]"},
    "s.u": {"id": "BIGINT", "c": "BIGINT", "at": "TIMESTAMP"},
}


def values_of(sql: str) -> dict[str, set[str]]:
    return {
        name: {".".join(one).removeprefix("s.") for one in sources}
        for name, sources in sources_of(sql, COLUMNS).values.items()
    }


def rows_of(sql: str) -> set[str]:
    return {".".join(one).removeprefix("s.") for one in sources_of(sql, COLUMNS).rows}


def test_a_column_comes_from_what_its_expression_names_through_every_step():
    sql = """
        with one as (select id, a + b as ab from lake.s.t),
        two as (select id, ab * 2 as twice from one where id > 0)
        select twice as x, coalesce(c, 0) as y, 1 as z from two join lake.s.u using (id)
    """
    assert values_of(sql) == {"x": {"t.a", "t.b"}, "y": {"u.c"}, "z": set()}
    assert rows_of(sql) == {"t.id", "u.id"}
    assert sources_of(sql, COLUMNS).tables == {"s.t", "s.u"}


def test_star_is_every_column():
    assert values_of("select * exclude (at, xs) from lake.s.t") == {
        "id": {"t.id"}, "a": {"t.a"}, "b": {"t.b"},
    }  # fmt: skip


def test_conditions_joins_and_groups_decide_rows_and_an_order_without_a_limit_does_not():
    sql = """
        select t.a, sum(c) as c from lake.s.t as t asof join lake.s.u as u
            on t.id = u.id and t.at >= u.at
        where b > 0 group by t.a having max(u.c) > 1 order by t.at
    """
    assert rows_of(sql) == {"t.id", "u.id", "t.at", "u.at", "t.b", "t.a", "u.c"}
    assert rows_of("select a from lake.s.t order by at") == set()
    assert rows_of("select a from lake.s.t order by at limit 1") == {"t.at"}


def test_unions_take_columns_by_place_and_a_distinct_one_by_all_of_them():
    both = "select a, b from lake.s.t {} select c as other, id from lake.s.u"
    assert values_of(both.format("union all")) == {"a": {"t.a", "u.c"}, "b": {"t.b", "u.id"}}
    assert rows_of(both.format("union all")) == set()
    assert rows_of(both.format("union")) == {"t.a", "u.c", "t.b", "u.id"}
    assert rows_of("select distinct a from lake.s.t") == {"t.a"}


def test_windows_count_whether_they_have_a_name_or_not():
    named = "select sum(a) over w as x from lake.s.t window w as (partition by id order by at)"
    assert values_of(named) == {"x": {"t.a", "t.id", "t.at"}}
    assert values_of("select count(*) over (partition by b) as n from lake.s.t")["n"] == {"t.b"}


def test_the_first_row_of_each_key_is_decided_by_the_key_and_what_the_row_does_not_carry():
    sql = """
        select id, a from lake.s.t
        qualify row_number() over (partition by id order by at desc, a) = 1
    """
    assert rows_of(sql) == {"t.id", "t.at"}


def test_subqueries_count_where_they_stand():
    sql = """
        select a, (select max(c) from lake.s.u as u where u.id = t.id) as top from lake.s.t as t
        where exists (select 1 from lake.s.u as v where v.at = t.at)
    """
    assert values_of(sql) == {"a": {"t.a"}, "top": {"u.c", "u.id", "t.id"}}
    assert rows_of(sql) == {"u.at", "t.at"}


def test_a_count_comes_from_what_it_counts():
    sql = "select count(*) as n from lake.s.t where b > 1 group by id"
    assert values_of(sql) == {"n": {"t.b", "t.id"}}


def test_unnested_values_come_from_their_list():
    assert "t.xs" in values_of("select x from lake.s.t as t, unnest(t.xs) as l(x)")["x"]


def test_a_query_that_is_none_is_told_in_words():
    with pytest.raises(MendableError, match="lineage of a query"):
        sources_of("selec a fro t where", COLUMNS)
