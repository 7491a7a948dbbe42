"""The warehouse: readers never wait, one writer at a time, and mistakes are told in words."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import duckdb
import pytest

from orchestration.errors import MendableError
from orchestration.settings import Settings, load_settings
from orchestration.warehouse import connect as connecting
from orchestration.warehouse.connect import attach_statement, connect, kept_open, writing
from orchestration.warehouse.frames import table_exists


def test_connections_that_are_alike_share_the_warehouse_and_nothing_that_is_one_s_own(settings):
    with kept_open(settings), connect(settings) as one, connect(settings) as other:
        one.execute("create schema raw; create table raw.t as select 1 as a")
        one.execute(
            "create temp table own as select 2 as a; set variable v = 3; set TimeZone = 'UTC'"
        )
        other.execute("set TimeZone = 'Asia/Tokyo'")
        assert other.execute("from raw.t").fetchall() == [(1,)]
        assert other.execute("select getvariable('v')").fetchall() == [(None,)]
        with pytest.raises(duckdb.CatalogException):
            other.execute("from temp.own")
        assert one.execute("select current_setting('TimeZone')").fetchall() == [("UTC",)]
        with connect(settings, read_only=True) as reader:
            with pytest.raises(duckdb.Error, match="read-only"):
                reader.execute("insert into raw.t values (4)")
            other.execute("insert into raw.t values (5)")
            assert reader.execute("select count(*) from raw.t").fetchall() == [(2,)]


def test_threads_that_open_at_once_all_get_the_warehouse(tmp_path):
    start = Barrier(6)

    def rows(number: int, where: Settings) -> list[tuple]:
        start.wait()
        with connect(where, read_only=number % 2 == 0) as connection:
            return connection.execute("from raw.t").fetchall()

    for turn in range(5):
        where = load_settings(data_dir=tmp_path / str(turn))
        with connect(where) as connection:
            connection.execute("create schema raw; create table raw.t as select 1 as a")
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(rows, range(6), [where] * 6)) == [[(1,)]] * 6


def test_a_table_that_is_not_there_leaves_the_transaction_as_it_was(settings):
    with connect(settings) as connection:
        connection.execute("create schema raw; create table raw.t as select 1 as a")
        connection.execute("begin; insert into raw.t values (2)")
        assert table_exists(connection, "raw", "t")
        assert not table_exists(connection, "raw", "no such")
        assert not table_exists(connection, "none", "t")
        connection.execute("commit")
        assert connection.execute("select count(*) from raw.t").fetchall() == [(2,)]


def test_a_reader_sees_the_last_commit_while_a_writer_is_inside_a_transaction(settings):
    writer = connect(settings)
    writer.execute("create schema raw; create table raw.t as select 1 as a")
    with writing(settings, "a test"):
        writer.execute("begin; insert into raw.t values (2)")
        reader = connect(settings, read_only=True)
        assert reader.execute("select count(*) from raw.t").fetchone() == (1,)
        writer.execute("commit")
    assert reader.execute("select count(*) from raw.t").fetchone() == (2,)


def test_a_second_writer_is_told_who_writes_and_what_to_do(settings):
    impatient = settings.model_copy(update={"lock_timeout_seconds": 0.2})
    with (
        writing(settings, "dbt build"),
        pytest.raises(MendableError, match=r"dbt build \(process \d+\) is at work") as caught,
        writing(impatient, "another build"),
    ):
        pass
    assert "run the command again" in str(caught.value)


def test_whoever_opens_a_new_warehouse_at_once_finds_one_that_is_whole(tmp_path, monkeypatch):
    """Each with an engine of its own, as processes have; only the catalog is between them."""
    monkeypatch.setattr(connecting, "_ATTACHING", nullcontext())
    many, start = 6, Barrier(6)

    def write(number: int, where: Settings) -> None:
        own = where.model_copy(update={"threads": number + 1})  # connections alike share an engine
        start.wait()
        with connect(own) as connection, writing(where, "a test"):
            connection.execute(f"create schema s{number}")

    for turn in range(3):
        where = load_settings(data_dir=tmp_path / str(turn))
        with ThreadPoolExecutor(many) as pool:
            list(pool.map(write, range(many), [where] * many))
        with connect(where, read_only=True) as connection:
            ((schemas,),) = connection.execute(
                "select count(*) from duckdb_schemas() where database_name = 'lake' and schema_name like 's_'"
            ).fetchall()
            options = connection.execute(
                "select value from ducklake_options('lake') where option_name = 'parquet_compression'"
            ).fetchall()
        assert (schemas, options) == (many, [("zstd",)])


def test_a_killed_writer_leaves_no_lock_behind(settings):
    script = textwrap.dedent(
        """
        import os, signal
        from orchestration.settings import Settings, load_settings
        from orchestration.warehouse.connect import writing
        with writing(load_settings(), "a doomed build"):
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    impatient = settings.model_copy(update={"lock_timeout_seconds": 0})
    with writing(impatient, "the next build"):
        pass


def test_reading_before_anything_was_built_says_how_to_build(settings):
    with pytest.raises(MendableError, match="make demo"):
        connect(settings, read_only=True)


def test_a_data_folder_that_cannot_be_written_is_named_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    settings = load_settings(data_dir=tmp_path / "file" / "data")
    with pytest.raises(MendableError, match="WATERSHED_DATA_DIR"):
        connect(settings)


def test_a_catalog_that_is_no_catalog_is_told_in_words(settings):
    assert settings.catalog_file
    settings.catalog_file.parent.mkdir(parents=True)
    settings.catalog_file.write_bytes(b"not a database" * 100)
    with pytest.raises(MendableError, match="WATERSHED_CATALOG"):
        connect(settings)


def test_a_moved_data_folder_still_opens(settings, tmp_path):
    writer = connect(settings)
    writer.execute("create schema raw; create table raw.t as select range as a from range(1000)")
    writer.close()
    settings.data_dir.rename(tmp_path / "elsewhere")
    moved = load_settings(data_dir=tmp_path / "elsewhere")
    assert connect(moved, read_only=True).execute("select sum(a) from raw.t").fetchone() == (
        499500,
    )


def test_the_attach_statement_quotes_paths(tmp_path):
    settings = load_settings(data_dir=tmp_path / "o'hara")
    connect(settings).close()
    assert "o''hara" in attach_statement(settings)
