"""Taking rows out of every snapshot: whatever the history, nothing else changes in any of them."""

from __future__ import annotations

import itertools
import shutil

import duckdb
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestration.settings import load_settings
from orchestration.warehouse.catalog_files import catalog_of
from orchestration.warehouse.connect import connect
from orchestration.warehouse.rewriting import Removal, Wanted

PERSON = 7
ROW = (
    "range as id, range % 11 as household_id, 'text ' || range as note, [range, null] as parts,"
    " {'a': range, 'b': null::varchar} as nested, (range / 7)::decimal(12, 2) as amount,"
    " case when range % 3 = 0 then null else range / 7 end as share, timestamp '2020-01-01' as at"
)
STEPS = st.one_of(
    st.tuples(st.just("insert"), st.integers(0, 400), st.integers(1, 200)),
    st.tuples(st.just("insert"), st.integers(0, 400), st.integers(1, 5)),  # kept in the catalog
    st.tuples(st.just("delete"), st.integers(0, 600), st.integers(1, 150)),
    st.tuples(st.just("delete"), st.integers(0, 600), st.integers(1, 3)),
    st.tuples(st.just("update"), st.integers(0, 600), st.integers(1, 100)),
    st.tuples(st.just("update"), st.integers(0, 600), st.integers(1, 3)),
    st.tuples(st.sampled_from(["merge", "flush", "rename", "add"]), st.just(0), st.just(0)),
)
fresh = itertools.count()


def run(connection, step, number):
    kind, first, count = step
    between = f"id between {first} and {first + count}"
    if kind == "insert":
        connection.execute(
            f"insert into raw.t by name select {ROW} from range({first}, {first + count})"
            if _person_column(connection) == "household_id"
            else f"insert into raw.t by name select {ROW.replace('household_id', 'person')}"
            f" from range({first}, {first + count})"
        )
    elif kind == "delete":
        connection.execute(f"delete from raw.t where {between}")
    elif kind == "update":
        connection.execute(f"update raw.t set note = 'changed {number}' where {between}")
    elif kind == "merge":
        connection.execute("call ducklake_merge_adjacent_files('lake')")
    elif kind == "flush":
        connection.execute("call ducklake_flush_inlined_data('lake')")
    elif kind == "rename" and _person_column(connection) == "household_id":
        connection.execute("alter table raw.t rename column household_id to person")
    elif kind == "add":
        connection.execute(f"alter table raw.t add column more_{number} bigint")


def _person_column(connection):
    names = [row[0] for row in connection.execute("describe raw.t").fetchall()]
    return "person" if "person" in names else "household_id"


def everything(connection):
    """Every snapshot's rows with their row numbers, but for the person's."""
    found = {}
    for (snapshot,) in connection.execute("select snapshot_id from snapshots()").fetchall():
        try:
            at = f"raw.t at (version => {snapshot})"
            names = [row[0] for row in connection.execute(f"describe from {at}").fetchall()]
        except duckdb.Error:  # before the table was
            continue
        column = "person" if "person" in names else "household_id"
        found[snapshot] = (
            connection.execute(
                f"select rowid, * from {at} where {column} <> {PERSON} order by all"
            ).fetchall(),
            connection.execute(f"select count(*) from {at} where {column} = {PERSON}").fetchall(),
        )
    return found


def table_id(connection):
    return connection.execute(
        "select table_id from ducklake_table_info('lake') where table_name = 't'"
    ).fetchall()[0][0]


def wanted(connection, value=PERSON):
    equals = {2: (str(value), "bigint")}
    return [Wanted(table_id(connection), "raw.t", {2: f"{{}} = {value}"}, equals)]


def forget(settings, value=PERSON):
    with connect(settings) as connection:
        these = wanted(connection, value)
        with catalog_of(connection, settings) as cursor:
            removal = Removal(cursor, settings)
            removal.find(these)
            found = removal.found()
            removal.remove("forget")
    return found


@given(st.lists(STEPS, min_size=1, max_size=8))
@hypothesis_settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_after_any_history_every_snapshot_is_what_it_was_without_the_person(tmp_path, steps):
    settings = load_settings(data_dir=tmp_path / str(next(fresh)))
    with connect(settings) as connection:
        connection.execute("create schema raw")
        connection.execute(f"create table raw.t as select {ROW} from range(300)")
        for number, step in enumerate(steps):
            run(connection, step, number)
        before = everything(connection)
    forget(settings)
    with connect(settings) as connection:
        after = everything(connection)
        assert {s: rows for s, (rows, _) in after.items() if s in before} == {
            s: rows for s, (rows, _) in before.items()
        }
        assert all(there == [(0,)] for _, there in after.values())
        # And the table goes on as before.
        column = _person_column(connection)
        connection.execute(f"update raw.t set note = 'later' where {column} = 3")
        connection.execute(f"delete from raw.t where {column} = 4")
        connection.execute("call ducklake_merge_adjacent_files('lake')")
        last = before[max(before)][0]
        names = [row[0] for row in connection.execute("describe raw.t").fetchall()]
        place = names.index(column) + 1
        still = connection.execute("select rowid, * from raw.t").fetchall()
        assert {r[0] for r in still} == {r[0] for r in last if r[place] != 4}
    shutil.rmtree(settings.data_dir)
