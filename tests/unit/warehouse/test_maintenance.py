"""Upkeep: the lake shrinks, and no release loses a row or the rows that it is rebuilt from."""

from __future__ import annotations

import duckdb
import pytest

from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect, transaction
from orchestration.warehouse.files import damaged
from orchestration.warehouse.maintenance import Maintained, maintain
from orchestration.warehouse.releases import release, releases, training_set, verify

CHECKS = {"checks_passed": 1, "checks_warned": 0}


@pytest.fixture
def lake(settings):
    with connect(settings) as connection:
        for schema in ("raw", "staging", "training_sets"):
            connection.execute(f"create schema {schema}")
        connection.execute("create table raw.r (id int)")
        yield connection


def build(connection, number):
    """Land a thousand rows, and make staging and the training set of all that have landed."""
    connection.execute(f"insert into raw.r select {number} from range(1000)")
    connection.execute("create or replace table staging.stg_r as from raw.r")
    connection.execute("create or replace table training_sets.train_a as from staging.stg_r")


def snapshots(connection):
    return {n for (n,) in connection.execute("select snapshot_id from snapshots()").fetchall()}


def size(settings):
    return sum(file.stat().st_size for file in (settings.data_dir / "lake").rglob("*.parquet"))


def test_upkeep_keeps_every_release_and_what_it_is_rebuilt_from(lake, settings):
    read = {}
    for number in range(1, 9):
        build(lake, number)
        if number % 4 == 0:
            one = release(lake, settings, **CHECKS)
            ((staged,),) = lake.execute(
                "select max(snapshot_id) from snapshots()"
                " where list_contains(changes['tables_created'], 'staging.stg_r')"
            ).fetchall()
            read[one.name] = (staged - 1, 1000 * number)
    before, bytes_before = snapshots(lake), size(settings)
    done = maintain(lake, settings, keep_days=0)
    assert done.snapshots_expired == len(before) - len(snapshots(lake) & before) > 10
    assert done.files_removed > 10
    assert size(settings) < bytes_before / 2
    for one in releases(lake):
        assert one.snapshot_id in snapshots(lake)
        assert training_set(lake, f"train_a@{one.name}").num_rows == read[one.name][1]
        assert all(told == now for _, told, now in verify(lake, one.name))
        snapshot, rows = read[one.name]
        assert lake.execute(
            f"select count(*) from raw.r at (version => {snapshot})"
        ).fetchall() == [(rows,)]


def test_merging_files_is_no_change_that_would_be_released(lake, settings):
    for number in range(1, 4):
        build(lake, number)
        lake.execute("insert into training_sets.train_a select range from range(1000)")
    release(lake, settings, **CHECKS)
    assert maintain(lake, settings, keep_days=0).files_merged > 0
    assert release(lake, settings, **CHECKS) is None


def test_releases_that_change_a_little_each_store_at_most_twice_one_after_upkeep(lake, settings):
    rows, count = 100_000, 20

    def change(where, salt):
        lake.execute(
            "create or replace temp table made as select id, md5((id + ?)::varchar) as name"
            f" from training_sets.train_a where {where}", [salt],
        )  # fmt: skip
        with transaction(lake):
            lake.execute(f"delete from training_sets.train_a where {where}")
            lake.execute("insert into training_sets.train_a from made")

    lake.execute(
        "create table training_sets.train_a as"
        f" select range as id, md5(range::varchar) as name from range({rows})"
    )
    release(lake, settings, **CHECKS)
    one = size(settings)
    for number in range(1, count):
        change(f"hash(id) % {count} = {number}", number * rows)
        release(lake, settings, **CHECKS)
    done = maintain(lake, settings, keep_days=0)
    assert done.deletions_compressed == 1
    assert size(settings) < 2 * one
    for known in releases(lake):
        assert all(told == now for _, told, now in verify(lake, known.name))
    assert not damaged(lake, settings)
    change("id = 7", 1)  # the compressed file is added to like any other
    change("hash(id) % 3 = 0", 2)
    release(lake, settings, **CHECKS)
    assert maintain(lake, settings, keep_days=0).deletions_compressed > 0
    assert maintain(lake, settings, keep_days=0).deletions_compressed == 0
    for known in releases(lake):
        assert all(told == now for _, told, now in verify(lake, known.name))


def test_compressed_deletions_are_as_encrypted_as_the_lake():
    settings = load_settings(encrypted=True)
    with connect(settings) as lake:
        lake.execute("create schema training_sets")
        lake.execute("create table training_sets.train_a as select range as id from range(5000)")
        lake.execute("delete from training_sets.train_a where id % 2 = 0")
        release(lake, settings, **CHECKS)
        assert maintain(lake, settings, keep_days=0).deletions_compressed == 1
        assert all(told == now for _, told, now in verify(lake, "r1"))
        (path,) = (settings.data_dir / "lake").rglob("*-compressed-delete.parquet")
    with duckdb.connect() as other, pytest.raises(duckdb.Error, match="encrypted"):
        other.execute("select * from read_parquet(?)", [str(path)])


def test_what_was_in_use_lately_and_what_came_after_the_last_release_stays(lake, settings):
    build(lake, 1)
    assert maintain(lake, settings, keep_days=0).snapshots_expired == 0  # no release yet
    build(lake, 2)
    release(lake, settings, **CHECKS)
    build(lake, 3)
    before = snapshots(lake)
    assert maintain(lake, settings).snapshots_expired == 0
    maintain(lake, settings, keep_days=0)
    ((last,),) = lake.execute("select max(snapshot_id) from releases.history").fetchall()
    assert {n for n in before if n >= last} <= snapshots(lake)


def test_an_empty_warehouse_has_nothing_to_maintain(settings):
    with connect(settings) as connection:
        assert maintain(connection, settings) == Maintained(0, 0, 0, 0)
