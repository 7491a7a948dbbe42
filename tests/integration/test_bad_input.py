"""Bad input through the command line: one clear message with what to do, and the warehouse as it was."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from orchestration.demo import dataset
from tests.integration.small_house import assert_told


@pytest.fixture
def untouched(house):
    """What is in the warehouse is the same after the test."""
    before = house.contents()
    yield
    assert house.contents() == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("token", "arrived"), [("", "no token"), ("wrong", "a token that the API refuses")]
)
def test_a_missing_or_wrong_token_names_the_setting(house, token, arrived):
    result = house.watershed("build", WATERSHED_CAMPAIGN_API_TOKEN=token)
    assert_told(result, "setting WATERSHED_CAMPAIGN_API_TOKEN", arrived)


@pytest.mark.usefixtures("untouched")
def test_a_database_that_does_not_answer_is_named_without_its_password(house):
    url = "postgresql://watershed:a-password@127.0.0.1:1/retail"
    result = house.watershed("build", WATERSHED_RETAIL_DB_URL=url)
    assert_told(result, "PostgreSQL at 127.0.0.1:1", "nothing listens there", "RETAIL_DB_URL")
    assert "a-password" not in result.output


@pytest.mark.usefixtures("untouched")
def test_a_column_gone_from_the_source_is_named(house):
    with closing(sqlite3.connect(house.database)) as database:
        database.execute("alter table products rename column brand to make")
    try:
        result = house.watershed("build")
    finally:
        with closing(sqlite3.connect(house.database)) as database:
            database.execute("alter table products rename column make to brand")
    assert_told(result, "retail_db.products: column brand", "defs/raw/retail_db/defs.yaml")


@pytest.mark.usefixtures("untouched")
def test_a_corrupt_file_of_the_demos_package_is_named(house, tmp_path, monkeypatch):
    (tmp_path / "corruptjourney" / "data").mkdir(parents=True)
    (tmp_path / "corruptjourney" / "__init__.py").touch()
    for name in ("transactions", "products", "demographics"):
        path = tmp_path / "corruptjourney" / "data" / f"{name}.parquet"
        path.write_bytes(dataset.parquet_file(name).read_bytes()[:-1000])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dataset, "PACKAGE", "corruptjourney")
    result = house.watershed("demo", WATERSHED_RETAIL_DB_URL="")
    assert_told(result, "transactions.parquet", "make reinstall")


@pytest.mark.parametrize("command", ["demo", "build", "ui", "sql"])
def test_a_data_folder_that_cannot_be_written_is_named(house, tmp_path, command):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "data")
    result = house.watershed(command, WATERSHED_DATA_DIR=folder, WATERSHED_RETAIL_DB_URL="")
    assert_told(result, folder)


HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]).acquire(); print(flush=True); input()"


@pytest.fixture
def held_elsewhere():
    """Holds lock files in processes of their own until the test ends."""
    holders = []

    def hold(path):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        holders.append(holder)
        assert holder.stdout.readline()

    yield hold
    for holder in holders:
        holder.communicate(b"\n", timeout=10)


@pytest.mark.usefixtures("untouched")
def test_a_second_build_while_one_runs_is_refused(house, held_elsewhere):
    held_elsewhere(house.settings.data_dir / "build.lock")
    result = house.watershed("build")
    assert_told(result, "another build is running", "wait until it has finished")


@pytest.mark.usefixtures("untouched")
def test_a_build_waits_for_another_writer_and_then_says_so(house, held_elsewhere):
    held_elsewhere(house.settings.catalog_file.with_suffix(".builder.lock"))
    result = house.watershed("build", WATERSHED_LOCK_TIMEOUT_SECONDS="0.2")
    assert_told(result, "was still after 0.2 s", "wait until it has finished")
