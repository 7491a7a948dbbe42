"""Erasure: a person is gone from every byte, everybody else is where they were, and receipts say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import duckdb
import pytest

from orchestration.command_line import _compare
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.erasure import as_text, forget, receipts_of
from orchestration.warehouse.holding import nobody_holding_rows
from orchestration.warehouse.person import Person
from orchestration.warehouse.releases import release, releases, verify

CHECKS = {"checks_passed": 3, "checks_warned": 0}
ID = 987654321012
PAYMENT = 555666777888
WHO = Person(
    "customer_id", str(ID), frozenset({("raw.pay__payments", "cust")}), frozenset({"payment_id"})
)


@pytest.fixture
def settings():
    return load_settings(privacy_key="a key of the tests, of some length")


@pytest.fixture
def house(settings):
    return fill(settings)


def fill(settings):
    """Raw rows, rows set aside, and three releases, of which the first does not hold the person."""
    with connect(settings) as connection:
        for schema in (
            "raw",
            "quarantine",
            "staging",
            "features",
            "training_sets",
            "trained_models",
        ):
            connection.execute(f"create schema {schema}")
        connection.execute(
            "create table raw.pay__payments (payment_id bigint, cust bigint, note varchar)"
        )
        connection.execute("create table raw.pay__reports (payment_id bigint, is_fraud boolean)")
        connection.execute(
            "create table quarantine.pay__payments (reason varchar, payload varchar, raw blob)"
        )
        connection.execute(
            "insert into raw.pay__payments select range, range % 50, 'n' from range(900)"
        )
        _build(connection, settings)
        connection.execute(
            f"insert into raw.pay__payments values ({PAYMENT}, {ID}, 'first'), (1, {ID}1, 'another')"
        )
        connection.execute(f"insert into raw.pay__reports values ({PAYMENT}, true), (3, false)")
        connection.execute(
            f"""
            insert into quarantine.pay__payments values
                ('torn', null, '{{"payment_id": 9, "cust": {ID}, "no'::blob),
                ('no', '{{"payment_id": 8, "customer_id": "{ID}"}}', null),
                ('no', '{{"payment_id": {PAYMENT}}}', null),
                ('no', '{{"payment_id": 7, "cust": {ID}1}}', null)
            """
        )
        for _ in range(2):
            connection.execute(
                f"insert into raw.pay__payments select 1000 + range, case range when 7 then {ID} else"
                " range % 50 end, 'more' from range(200)"
            )
            _build(connection, settings)
        connection.execute(
            "create table trained_models.pay as select 'pay-' || snapshot_id as model_version,"
            " snapshot_id as training_snapshot_id from releases.history"
        )
    return settings


def _build(connection, settings):
    connection.execute(
        "create or replace table staging.stg_pay as select payment_id, cust as customer_id, note"
        " from raw.pay__payments"
    )
    for table in ("features.feat_pay", "training_sets.train_pay"):
        connection.execute(
            f"create or replace table {table} as select *, payment_id / 7 as share from staging.stg_pay"
        )
    release(connection, settings, **CHECKS)


def everyone_else(settings):
    with connect(settings, read_only=True) as connection:
        found = {
            table: connection.execute(
                f"from {table} where {column} not in ({ID}, {PAYMENT}) order by all"
            ).fetchall()
            for table, column in (
                ("raw.pay__payments", "cust"), ("raw.pay__reports", "payment_id"),
                ("staging.stg_pay", "customer_id"), ("training_sets.train_pay", "customer_id"),
            )
        }  # fmt: skip
        for one in releases(connection):
            for table in ("features.feat_pay", "training_sets.train_pay"):
                found[f"{table}@{one.name}"] = connection.execute(
                    f"from {table} at (version => {one.snapshot_id})"
                    f" where customer_id <> {ID} order by all"
                ).fetchall()
        return found


def places_with(settings, number):
    """Files of the data folder that hold a number: as text, as eight bytes, or once decoded."""
    found = set()
    shapes = (str(number).encode(), number.to_bytes(8, "little"))
    with connect(settings, read_only=True) as connection:
        for path in settings.data_dir.rglob("*"):
            if not path.is_file():
                continue
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data += str(connection.execute(f"from read_parquet('{path}')").fetchall()).encode()
            # An identifier of somebody else that only begins with it does not count.
            if any(shape in data.replace(f"{number}1".encode(), b"") for shape in shapes):
                found.add(path.name)
    return found


def test_a_person_is_gone_from_every_byte_and_everybody_else_is_where_they_were(house):
    before = everyone_else(house)
    assert places_with(house, ID)
    assert places_with(house, PAYMENT)
    what = forget(house, WHO)
    assert {number for number, *_ in what.releases} == {2, 3}
    assert what.tables["raw.pay__payments"][0] == 3
    assert what.tables["raw.pay__reports"][0] == 1
    assert what.tables["quarantine.pay__payments"][0] == 3
    assert len(what.models) == 2
    assert places_with(house, ID) == places_with(house, PAYMENT) == set()
    assert everyone_else(house) == before
    with connect(house, read_only=True) as connection:
        left = connection.execute("select payload from quarantine.pay__payments").fetchall()
    assert left == [(f'{{"payment_id": 7, "cust": {ID}1}}',)]


def test_releases_that_held_the_person_get_a_new_hash_and_a_receipt_and_others_keep_theirs(house):
    with connect(house, read_only=True) as connection:
        before = connection.execute(
            "select release_number, content_hash from releases.contents"
            " where content_hash is not null order by 1"
        ).fetchall()
    forget(house, WHO)
    with connect(house, read_only=True) as connection:
        after = connection.execute(
            "select release_number, content_hash from releases.contents"
            " where content_hash is not null order by 1"
        ).fetchall()
        assert [one == other for one, other in zip(before, after, strict=True)] == [
            True, False, False
        ]  # fmt: skip
        for one in releases(connection):
            assert all(told == now for _, told, now in verify(connection, one.name))
        receipts = connection.execute(
            "select release_number, rows_removed, old_hash, new_hash from releases.receipts"
            " where is_done and table_name = 'train_pay' order by 1"
        ).fetchall()
        rows = {n: (r, b, a) for n, r, b, a in receipts}
        assert receipts_of(connection, "r1") == []
        assert [r for *_, r in receipts_of(connection, "r2")] == [2]
        assert {n: (b, a) for n, (_, b, a) in rows.items()} == {
            n: (b, a) for (n, b), (_, a) in zip(before, after, strict=True) if b != a
        }
        assert {n: r for n, (r, *_) in rows.items()} == {2: 2, 3: 3}


def test_a_dry_run_says_the_same_and_changes_nothing(house):
    told = forget(house, WHO, dry_run=True)
    assert places_with(house, ID)
    assert told == forget(house, WHO)
    assert forget(house, WHO).tables == {}


def test_an_identifier_that_no_table_has_is_refused_in_words(house):
    with pytest.raises(MendableError, match="the identifier shoe_size"):
        forget(house, Person("shoe_size", "44"))


def test_killed_at_any_moment_the_same_command_ends_it_and_nobody_else_is_lost(house):
    before = everyone_else(house)
    code = (
        "from tests.unit.warehouse.test_erasure import *;"
        "forget(load_settings(privacy_key='a key of the tests, of some length'), WHO)"
    )
    for wait in (0.5, 0.7, 0.9, 1.1):
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert everyone_else(house) == before
    forget(house, WHO)
    assert places_with(house, ID) == places_with(house, PAYMENT) == set()
    assert everyone_else(house) == before
    with connect(house, read_only=True) as connection:
        for one in releases(connection):
            assert all(told == now for _, told, now in verify(connection, one.name))


def test_the_bounds_of_a_table_that_held_nobody_else_say_nothing_of_the_person(settings):
    """Once as a file, once small enough for the catalog, once in a table that is dropped since."""
    words = "the-only-words-of-this-person"
    person = f"select {ID} as customer_id, '{words}' as note, {{'inner': '{words}'}} as nested"
    with connect(settings) as connection:
        connection.execute("create schema staging")
        connection.execute(
            f"create table staging.stg_calls as {person}, range as n from range(500)"
        )
        connection.execute(f"create table staging.stg_letters as {person}")
        connection.execute(f"create table staging.stg_gone as {person}, range as n from range(500)")
        connection.execute("drop table staging.stg_gone")
    forget(settings, WHO)
    held = settings.catalog_file.read_bytes()
    assert str(ID).encode() not in held
    assert words.encode() not in held
    with connect(settings) as connection:  # and what comes later is found by its own bounds
        connection.execute("insert into staging.stg_calls select 5, 'mild', {'inner': 'zebra'}, 9")
        connection.execute(
            "insert into staging.stg_letters select range, 'mild', {'inner': 'zebra'}"
            " from range(300)"
        )
        for table in ("stg_calls", "stg_letters"):
            assert connection.execute(
                f"select note, nested.inner from staging.{table} where customer_id = 5"
                " and note = 'mild' and nested.inner = 'zebra'"
            ).fetchall() == [("mild", "zebra")]


def test_nobody_is_forgotten_while_dbt_builds(house, monkeypatch):
    """dbt's plugin, as dbt calls it when it connects: another build waits for the same process's end."""
    from orchestration.warehouse.dbt_plugin import Plugin

    flags = SimpleNamespace(WHICH="build")
    monkeypatch.setattr("orchestration.warehouse.dbt_plugin.get_flags", lambda: flags)
    impatient = house.model_copy(update={"lock_timeout_seconds": 0.2})
    dbt = Plugin("watershed", {}, SimpleNamespace(path="", is_motherduck=False))
    dbt.update_connection_config(None, {})
    with duckdb.connect() as connection:
        dbt.configure_connection(connection)
        dbt._pass_turn()  # others may write between two of its tables
        with pytest.raises(WarehouseBusyError, match="no build, dbt, step of the graph"):
            forget(impatient, WHO)
        assert places_with(house, ID)
    dbt._holds.close()
    dbt._builds.release()
    forget(impatient, WHO)
    assert places_with(house, ID) == set()


def test_nobody_is_forgotten_while_a_step_of_the_graph_has_rows_in_hand(house, monkeypatch):
    import dagster as dg  # noqa: TID251

    from orchestration.defs.vocabulary import raise_as_failure

    impatient = house.model_copy(update={"lock_timeout_seconds": 0.2})

    @dg.asset
    def scores():
        with raise_as_failure(), pytest.raises(WarehouseBusyError, match="step of the graph"):
            forget(impatient, WHO)

    assert dg.materialize([scores]).success
    assert places_with(house, ID)
    monkeypatch.setenv("WATERSHED_LOCK_TIMEOUT_SECONDS", "0.2")
    with nobody_holding_rows(house), pytest.raises(dg.Failure, match="somebody is being forgotten"):
        dg.materialize([scores])
    forget(impatient, WHO)
    assert places_with(house, ID) == set()


def test_only_models_that_learned_from_the_person_are_listed_with_the_number_of_rows(settings):
    """Weeks learn from a window of one snapshot, with the labels known by then; months from one moment."""
    with connect(settings) as connection:
        for schema in ("staging", "training_sets", "trained_models"):
            connection.execute(f"create schema {schema}")
        row = "timestamp '2020-01-01' + to_days(range::int) as as_of_at"
        connection.execute(
            f"create table training_sets.train_weeks as select {ID} as customer_id, {row},"
            " as_of_at + interval 3 days as label_known_at from range(20)"
        )
        connection.execute(
            f"create table training_sets.train_months as select {ID} as customer_id, {row} from range(3)"
            f" union all select 5, {row} from range(40)"
        )
        ((snapshot,),) = connection.execute("select max(snapshot_id) from snapshots()").fetchall()
        connection.execute(
            f"""
            create table trained_models.weeks as
            select 'week-' || range as model_version, {snapshot} as training_snapshot_id,
                timestamp '2020-01-01' + to_days(7 * (range + 1)::int) as as_of_at,
                as_of_at - interval 7 days as trained_from, as_of_at as trained_until
            from range(5)
            """
        )
        connection.execute(
            f"create table trained_models.months as select 'month-' || range as model_version,"
            f" {snapshot} as training_snapshot_id, {row} from range(0, 40, 2)"
        )
        release(connection, settings, **CHECKS)
        # A model that only a release knows, and one of a snapshot that is expired.
        connection.execute("delete from trained_models.weeks where model_version = 'week-0'")
        connection.execute("insert into trained_models.weeks select 'old', 999, null, null, null")
    told = forget(settings, WHO, dry_run=True)
    assert sorted(told.models) == [
        ("months", "month-0", 1), ("months", "month-2", 1),
        ("weeks", "old", None), ("weeks", "week-0", 5), ("weeks", "week-1", 5), ("weeks", "week-2", 5),
    ]  # fmt: skip


def test_what_a_broker_still_holds_of_the_person_is_listed_by_topic_partition_and_offset(settings):
    with connect(settings) as connection:
        connection.execute("create schema raw; create schema quarantine; create schema staging")
        connection.execute("create table staging.stg_pay as select 1 as customer_id")
        connection.execute(
            f"create table raw.pay__payments as select case when range in (5, 6, 9) then {ID} else range"
            " end as cust, 'payments/' || (range % 400 // 200) || '/' || range as _source_position"
            " from range(400)"
        )
        connection.execute(  # so few that the catalog keeps them
            f"insert into raw.pay__payments values ({ID}, 'payments/1/7'), ({ID}, 'lake/part-1.parquet')"
        )
        connection.execute(
            "create table quarantine.pay__payments as select 'torn' as reason,"
            f""" '{{"cust": {ID}, "no' as payload, 'payments/0/7' as _source_position"""
        )
    left = {"payments": [(0, 5, 7), (0, 9, 9), (1, 7, 7)]}
    assert forget(settings, WHO, dry_run=True).left == left
    told = as_text(forget(settings, WHO), dry_run=False)
    assert "topic payments, partition 0: offsets 5 to 7, 9" in told
    forget(settings, WHO)  # there is no row any more that says it
    with connect(settings, read_only=True) as connection:
        assert (
            connection.execute(
                "select partition_number, first_offset, last_offset from landing.left_in_topics order by all"
            ).fetchall()
            == left["payments"]
        )


def test_who_compares_an_erased_release_is_told_what_was_erased_and_why_others_rows_differ(
    house, capsys
):
    forget(house, WHO)
    with connect(house, read_only=True) as connection:
        erased = receipts_of(connection, "r3")
        same = verify(connection, "r3")
    _compare("r3", same, erased)
    told = capsys.readouterr().out
    assert "training_sets.train_pay: 3 rows of a person were erased at" in told
    assert "the same" in told
    assert "come out otherwise" not in told
    with pytest.raises(SystemExit):  # a terminal's payments were counted with the person's
        _compare("r3", [(table, before, "x") for table, before, _ in same], erased, is_rebuilt=True)
    told = capsys.readouterr().out
    assert "NOT the same" in told
    assert "without it they come out otherwise" in told
