"""Releases: readers see one release or another and never a mixture; what was released can be had again."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import duckdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.releases import (
    content_hash,
    move,
    release,
    releases,
    training_set,
    verify,
)

CHECKS = {"checks_passed": 3, "checks_warned": 1}


@pytest.fixture
def lake(settings):
    with connect(settings) as connection:
        for schema in ("raw", "features", "training_sets"):
            connection.execute(f"create schema {schema}")
        build(connection, 1)
        yield connection


def build(connection: duckdb.DuckDBPyConnection, number: int, rows: int = 50) -> None:
    """A build: every table says which one made it."""
    for table in ("features.feat_a", "training_sets.train_a"):
        connection.execute(
            f"create or replace table {table} as"
            f" select range as id, {number} as build, range / 7 as share from range({rows})"
        )


def builds_seen(connection: duckdb.DuckDBPyConnection) -> set[int]:
    return {
        number
        for (number,) in connection.execute(
            "select build from published.feat_a union select build from published.train_a"
        ).fetchall()
    }


def test_readers_see_the_last_release_and_not_what_is_being_built(lake, settings):
    first = release(lake, settings, **CHECKS)
    build(lake, 2)
    assert builds_seen(lake) == {1}
    second = release(lake, settings, **CHECKS)
    assert builds_seen(lake) == {2}
    assert [first.name, second.name] == ["r1", "r2"]
    assert [one.is_in_force for one in releases(lake)] == [False, True]
    assert second.rows_count == 100
    assert (second.checks_passed, second.checks_warned) == (3, 1)


def test_what_did_not_change_is_not_released_again(lake, settings):
    release(lake, settings, **CHECKS)
    lake.execute("create table raw.t as select 1 as landed")  # raw is no part of a release
    assert release(lake, settings, **CHECKS) is None
    lake.execute(
        "insert into features.feat_a values (99, 1, 0)"
    )  # kept in the catalog, not in a file
    assert release(lake, settings, **CHECKS).name == "r2"
    lake.execute("delete from features.feat_a where id = 99")
    assert release(lake, settings, **CHECKS).name == "r3"


def test_rolling_back_and_forward_moves_every_table_at_once(lake, settings):
    for number in (1, 2, 3):
        build(lake, number)
        release(lake, settings, **CHECKS)
    assert move(lake, settings, -1).name == "r2"
    assert builds_seen(lake) == {2}
    assert move(lake, settings, "r1").name == "r1"
    assert move(lake, settings, 1).name == "r2"
    assert move(lake, settings, "latest").name == "r3"
    assert builds_seen(lake) == {3}
    with pytest.raises(MendableError, match="release after r3"):
        move(lake, settings, 1)


def test_what_was_rolled_back_is_not_released_again_until_something_changes(lake, settings):
    for number in (1, 2):
        build(lake, number)
        release(lake, settings, **CHECKS)
    move(lake, settings, "r1")
    assert release(lake, settings, **CHECKS) is None
    assert builds_seen(lake) == {1}
    build(lake, 3)
    assert release(lake, settings, **CHECKS).name == "r3"
    assert builds_seen(lake) == {3}


def test_a_table_that_a_release_does_not_have_is_not_published(lake, settings):
    release(lake, settings, **CHECKS)
    lake.execute("create table features.feat_new as select 1 as a")
    release(lake, settings, **CHECKS)
    assert lake.execute("from published.feat_new").fetchall() == [(1,)]
    move(lake, settings, "r1")
    with pytest.raises(duckdb.CatalogException):
        lake.execute("from published.feat_new")
    lake.execute("drop table features.feat_new")
    move(lake, settings, "r2")
    assert lake.execute("from published.feat_new").fetchall() == [(1,)]  # as it was released


def test_a_released_training_set_is_the_same_rows_later(lake, settings):
    release(lake, settings, **CHECKS)
    released = training_set(lake, "train_a@r1")
    build(lake, 2, rows=10)
    release(lake, settings, **CHECKS)
    assert training_set(lake, "train_a@r1").sort_by("id") == released.sort_by("id")
    assert training_set(lake, "train_a").num_rows == 10
    with pytest.raises(MendableError, match="train_a"):
        training_set(lake, "train_b@r1")
    with pytest.raises(MendableError, match="one of the 2 releases"):
        training_set(lake, "train_a@r9")


def test_a_release_is_verified_by_its_rows(lake, settings):
    release(lake, settings, **CHECKS)
    ((table, told, now),) = verify(lake, "r1")
    assert (table, told) == ("training_sets.train_a", now)
    lake.execute(
        "update releases.contents set content_hash = 'other' where content_hash is not null"
    )
    ((_, told, now),) = verify(lake, "r1")
    assert told != now


def test_a_release_whose_files_are_gone_is_told_in_words(lake, settings, tmp_path):
    build(lake, 1, rows=5_000)
    release(lake, settings, **CHECKS)
    for file in (tmp_path / "data" / "lake").rglob("train_a/**/*.parquet"):
        file.unlink()
    with connect(settings, read_only=True) as fresh, pytest.raises(MendableError, match="backup"):
        verify(fresh, "r1")


values = st.one_of(
    st.none(),
    st.floats(allow_nan=False, min_value=-1e9, max_value=1e9),
    st.integers(-5, 5).map(float),
)


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-(2**60), 2**60),
            values,
            st.one_of(
                st.none(),
                st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            ),
            st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
            st.booleans(),
        ),
        max_size=20,
    ),
    seed=st.randoms(),
)
def test_the_hash_is_of_the_rows_whatever_their_order_the_threads_and_the_engine(lake, rows, seed):
    def hash_of(rows, threads):
        lake.execute(f"set threads = {threads}")
        lake.execute(
            "create or replace table features.h"
            " (n bigint, share double, text varchar, made_at timestamp, is_so boolean)"
        )
        if rows:
            lake.executemany("insert into features.h values (?, ?, ?, ?, ?)", rows)
        ((snapshot,),) = lake.execute("select max(snapshot_id) from snapshots()").fetchall()
        return content_hash(lake, "features", "h", snapshot)

    shuffled = list(rows)
    seed.shuffle(shuffled)
    assert hash_of(rows, 1) == hash_of(shuffled, 2) == hash_in_python(rows)


def hash_in_python(rows: list[tuple]) -> str:
    """The same hash by another engine: Python's integers and hashlib."""
    import math

    total = 0
    for n, share, text, made_at, is_so in rows:
        nano = None if share is None else str(math.floor(share * 1e9 + 0.5))
        fields = {
            "n": str(n),
            "share": nano,
            "text": text,
            "made_at": made_at.strftime("%Y-%m-%d %H:%M:%S.%f"),
            "is_so": str(is_so).lower(),
        }
        row = "\x1f".join(r"\N" if fields[c] is None else fields[c] for c in sorted(fields))
        total += int(hashlib.md5(row.encode()).hexdigest()[:15], 16)
    names = hashlib.md5(b"is_so|made_at|n|share|text").hexdigest()[:8]
    return f"{names}-{len(rows)}-{total:x}"


_MOVES = """
import sys
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.releases import move
settings = load_settings(data_dir=sys.argv[1])
with connect(settings) as connection:
    print("ready", flush=True)
    while True:
        for name in ("r1", "r2", "r3"):
            move(connection, settings, name)
            print(name, flush=True)
"""


def test_a_reader_never_sees_two_releases_at_once_though_movers_are_killed(lake, settings):
    for number in (1, 2, 3):
        build(lake, number)
        release(lake, settings, **CHECKS)
    lake.close()
    stop, seen = threading.Event(), []

    def read() -> None:
        with connect(settings, read_only=True) as reader:
            while not stop.is_set():
                seen.append(frozenset(builds_seen(reader)))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for tick in range(4):
            mover = subprocess.Popen(
                [sys.executable, "-c", _MOVES, str(settings.data_dir)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4 + tick):  # ready, and so many moves
                assert mover.stdout.readline()
            time.sleep(tick / 50)
            mover.send_signal(signal.SIGKILL)
            mover.wait()
            mover.stdout.close()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert all(len(builds) == 1 for builds in seen)
    assert len(set(seen)) == 3  # the moves were seen
    with connect(settings) as connection:
        (in_force,) = (one for one in releases(connection) if one.is_in_force)
        assert builds_seen(connection) == {in_force.number}


def test_two_rollbacks_at_once_are_not_two_steps(lake, settings, monkeypatch):
    for number in (1, 2, 3):
        build(lake, number)
        release(lake, settings, **CHECKS)
    from orchestration.warehouse import releases as module

    lock = module.writing

    def somebody_is_faster(settings, doing):
        monkeypatch.setattr(module, "writing", lock)
        with connect(settings) as other:
            move(other, settings, -1)
        return lock(settings, doing)

    monkeypatch.setattr(module, "writing", somebody_is_faster)
    with pytest.raises(MendableError, match="somebody else was faster"):
        move(lake, settings, -1)
    assert builds_seen(lake) == {2}


def test_without_a_release_the_way_to_one_is_told(settings):
    with connect(settings) as connection, pytest.raises(MendableError, match="make demo"):
        move(connection, load_settings(), "r1")


RELEASER = """
import random, sys
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect, transaction, writing
from orchestration.warehouse.releases import move, release, releases
settings, dice = load_settings(), random.Random(int(sys.argv[1]))
with connect(settings) as connection:
    while len(releases(connection)) < 10:
        number = len(releases(connection)) + 1
        for table in ("features.feat_a", "training_sets.train_a"):
            with writing(settings, "building"), transaction(connection):
                connection.execute(f"delete from {table}")
                connection.execute(
                    f"insert into {table} select id, {number} as build, id / 7 as share from raw.ids"
                    f" where id < {40 + number}"
                )
        release(connection, settings, checks_passed=1, checks_warned=0)
        print("released", flush=True)
        if dice.random() < 0.5 and number > 1:
            move(connection, settings, -1)
            move(connection, settings, 1)
            print("moved", flush=True)
"""


def test_ten_releases_made_by_builds_that_are_killed_are_whole_and_come_out_again(lake, settings):
    """Killed at random points of building, releasing and moving; what raw holds gives each release's hash again."""
    dice = random.Random(7)
    lake.execute("create table raw.ids as select range as id from range(100)")
    release(lake, settings, **CHECKS)
    stop, seen = threading.Event(), []

    def read():
        with connect(settings, read_only=True) as connection:
            while not stop.is_set():
                seen.append(frozenset(builds_seen(connection)))

    reader = threading.Thread(target=read)
    reader.start()
    kills = 0
    try:
        while len(releases(lake)) < 10:
            releaser = subprocess.Popen(
                [sys.executable, "-c", RELEASER, str(kills)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(dice.randint(1, 3)):
                if not releaser.stdout.readline():
                    break
            time.sleep(dice.random() / 4)
            releaser.send_signal(signal.SIGKILL)
            releaser.wait()
            releaser.stdout.close()
            kills += 1
    finally:
        stop.set()
        reader.join()
    assert kills > 3
    assert all(len(builds) == 1 for builds in seen)
    known = releases(lake)
    assert [one.number for one in known] == list(range(1, 11))
    for one in known:
        ((_, told, now),) = verify(lake, one.name)
        ((build_number,),) = lake.execute(
            f"select distinct build from training_sets.train_a at (version => {one.snapshot_id})"
        ).fetchall()
        lake.execute(
            "create or replace table features.again as"
            f" select id, {build_number} as build, id / 7 as share from raw.ids"
            f" where id < {50 if one.number == 1 else 40 + build_number}"
        )
        ((snapshot,),) = lake.execute("select max(snapshot_id) from snapshots()").fetchall()
        assert told == now == content_hash(lake, "features", "again", snapshot)
    for one in [*reversed(known), *known]:
        assert move(lake, settings, one.name).name == one.name
        assert len(builds_seen(lake)) == 1


def test_rolling_back_in_a_fresh_shell_does_not_wait_for_pandas(lake, settings):
    release(lake, settings, **CHECKS)
    build(lake, 2)
    release(lake, settings, **CHECKS)
    # DuckDB imports pandas, if it is there, as soon as a parameter is bound: half a second.
    script = """if True:
        import sys
        from orchestration.command_line import main
        for words in (["rollback"], ["rollforward"], ["releases"]):
            main(words, standalone_mode=False)
        assert not {"pandas", "polars", "pyarrow", "dagster", "dbt"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert releases(lake)[-1].is_in_force
