"""Backup, restore, damage, encryption and migration: what was released can be had back, or it is said what cannot."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from orchestration.duckdb_session import open_session
from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.backup import backup, restore
from orchestration.warehouse.connect import attach, connect, transaction, writing
from orchestration.warehouse.releases import release, releases, training_set, verify

CHECKS = {"checks_passed": 1, "checks_warned": 0}
CANARY = b"the-canary-sings"


def fill(settings, count=3, rows=2_000):
    """Releases of one training set, each with rows of its own."""
    with connect(settings) as connection:
        for schema in ("raw", "training_sets"):
            connection.execute(f"create schema if not exists {schema}")
        connection.execute("create table training_sets.train_a (id bigint, name varchar)")
        connection.execute("create table raw.events (id bigint)")
        for number in range(count):
            connection.execute(
                f"insert into training_sets.train_a select {number} + range, '{CANARY.decode()}' || range"
                f" from range({rows})"
            )
            release(connection, settings, **CHECKS)


def held(settings):
    with connect(settings, read_only=True) as connection:
        return {one.name: verify(connection, one.name) for one in releases(connection)}


def test_a_backup_of_a_warehouse_in_use_is_restored_with_every_release(settings, tmp_path):
    fill(settings)
    (settings.dagster_home / "history").mkdir(parents=True)
    with closing(sqlite3.connect(settings.dagster_home / "history" / "runs.db")) as history:
        history.execute("pragma journal_mode = wal")
        history.execute("create table runs as select 1 as run")
        history.commit()
        stop, landed = threading.Event(), []

        def land():
            with connect(settings) as writer:
                while not stop.is_set():
                    with writing(settings, "landing"), transaction(writer):
                        writer.execute("insert into raw.events from range(50)")
                    landed.append(50)

        writer = threading.Thread(target=land)
        writer.start()
        try:
            while len(landed) < 2:
                stop.wait(0.01)
            told: list[str] = []
            backup(settings, tmp_path / "backup", told.append)
        finally:
            stop.set()
            writer.join()
    assert backup(settings, tmp_path / "backup", told.append) <= len(landed)  # only what is new
    before = held(settings)
    shutil.rmtree(settings.data_dir)
    other = load_settings(data_dir=tmp_path / "elsewhere")
    restore(other, tmp_path / "backup", told.append)
    assert held(other) == before
    assert len(before) == 3
    with connect(other, read_only=True) as connection:
        assert connection.execute("select count(*) from raw.events").fetchone() == (sum(landed),)
        assert training_set(connection, "train_a@r2").num_rows == 4_000
    with closing(sqlite3.connect(other.dagster_home / "history" / "runs.db")) as history:
        assert history.execute("select run from runs").fetchall() == [(1,)]
    with pytest.raises(MendableError, match="would be overwritten"):
        restore(other, tmp_path / "backup", told.append)


def test_what_left_the_warehouse_leaves_the_backup_with_the_next_one(settings, tmp_path):
    fill(settings, count=1)
    stray = tmp_path / "backup" / "lake" / "training_sets" / "train_a" / "erased.parquet"
    backup(settings, tmp_path / "backup", print)
    stray.write_bytes(CANARY)
    backup(settings, tmp_path / "backup", print)
    assert not stray.exists()


def test_a_backup_has_a_folder_of_its_own_and_something_to_hold(settings, tmp_path):
    with pytest.raises(MendableError, match="nothing built yet"):
        backup(settings, tmp_path / "backup", print)
    fill(settings, count=1)
    with pytest.raises(MendableError, match="inside it"):
        backup(settings, settings.data_dir / "backup", print)
    with pytest.raises(MendableError, match="no catalog in it"):
        restore(settings, tmp_path, print)


def test_a_half_deleted_data_folder_is_told_by_file_table_and_release(settings, tmp_path):
    fill(settings)
    files = sorted(
        Path(settings.lake_path).rglob("train_a/*.parquet"), key=lambda f: f.stat().st_mtime
    )
    files[-1].unlink()  # only the last release reads it
    with connect(settings, read_only=True) as connection:
        assert verify(connection, "r2", settings)
        with pytest.raises(MendableError) as caught:
            verify(connection, "r3", settings)
    said = str(caught.value)
    assert "whole releases: r1, r2" in said
    assert f"training_sets/train_a/{files[-1].name}: missing" in said
    assert "restore" in said
    with pytest.raises(MendableError, match="missing"):
        backup(settings, tmp_path / "backup", print)


def test_an_encrypted_lake_has_no_plain_row_in_its_files_and_says_when_the_setting_came_too_late(
    settings, tmp_path
):
    secret = load_settings(data_dir=tmp_path / "secret", encrypted=True)
    for one in (settings, secret):
        fill(one)
    plain, hidden = (
        b"".join(file.read_bytes() for file in Path(one.lake_path).rglob("*.parquet"))
        for one in (settings, secret)
    )
    assert CANARY in plain
    assert hidden
    assert CANARY not in hidden
    assert b"PAR1" not in hidden  # an encrypted footer: PARE
    assert [[now for *_, now in tables] for tables in held(secret).values()] == [
        [now for *_, now in tables] for tables in held(settings).values()
    ]
    backup(secret, tmp_path / "backup", print)
    restored = load_settings(data_dir=tmp_path / "restored", encrypted=True)
    restore(restored, tmp_path / "backup", print)
    assert held(restored) == held(secret)
    with pytest.raises(MendableError, match="when the warehouse was created"):
        connect(settings.model_copy(update={"encrypted": True}))


def test_the_catalog_of_an_older_ducklake_says_so_and_is_migrated(settings):
    """The folder was written by DuckDB 1.4.1: DuckLake 0.3, where this one is 1.0."""
    old = Path(__file__).parent / "ducklake_0_3"
    lake = Path(settings.lake_path) / "training_sets" / "train_a"
    lake.mkdir(parents=True)
    for file in old.glob("*.parquet"):
        shutil.copy(file, lake)
    with closing(sqlite3.connect(settings.catalog_file)) as catalog:
        catalog.executescript((old / "catalog.sql").read_text())
    with pytest.raises(MendableError, match=r"(?s)version 0\.3, of an older.*make migrate"):
        connect(settings)
    with open_session(memory_limit="1GB") as connection:
        attach(connection, settings, migrate=True)
    with connect(settings) as connection:
        assert connection.execute("select count(*) from training_sets.train_a").fetchone() == (101,)
        assert release(connection, settings, **CHECKS).name == "r1"


def test_the_catalog_of_a_newer_ducklake_asks_for_a_newer_watershed(settings):
    fill(settings, count=1)
    with closing(sqlite3.connect(settings.catalog_file)) as catalog:
        catalog.execute("update ducklake_metadata set value = '7.0' where key = 'version'")
        catalog.commit()
    with pytest.raises(MendableError, match=r"(?s)version 7\.0, of a newer.*git pull"):
        connect(settings)
