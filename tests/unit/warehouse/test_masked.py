"""The schema masked: who must not know whom it is about sees nothing that tells, and joins all the same."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import duckdb
import pytest

from orchestration.duckdb_session import open_session
from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.masked import share, write_down
from orchestration.warehouse.privacy import DIRECT, NONE, QUASI, SENSITIVE
from orchestration.warehouse.releases import move, release

CHECKS = {"checks_passed": 1, "checks_warned": 0}
KEY = "of-sixteen-letters-or-more"
SALES = {
    "card_id": DIRECT, "store_id": QUASI, "sold_at": QUASI, "sold_on": QUASI, "days": QUASI,
    "price": QUASI, "share": QUASI, "town": QUASI, "thing": SENSITIVE, "till": NONE,
}  # fmt: skip
TAGS = {"features.sales": SALES, "features.cards": {"card_id": DIRECT, "n": SENSITIVE}}
ROWS = """
    select
        range as card_id, range % 3 as store_id, timestamp '2026-05-17 10:11:12' as sold_at,
        date '2026-05-17' as sold_on, range * 37 - 50 as days, cast(range * 3.25 as decimal(9, 2)) as price,
        range / 7 as share, 'Aarau' as town, 'wine' as thing, 4 as till, 'x' as untold
    from range(20)
"""


@pytest.fixture
def keyed(monkeypatch):
    monkeypatch.setenv("WATERSHED_PRIVACY_KEY", KEY)
    return load_settings()


@pytest.fixture
def lake(settings):
    with connect(settings) as connection:
        connection.execute("create schema features")
        connection.execute(f"create table features.sales as {ROWS}")
        connection.execute(
            "create table features.cards as select range as card_id, 1 as n from range(20)"
        )
        write_down(connection, settings, TAGS)
        release(connection, settings, **CHECKS)
        yield connection


def test_identifiers_are_pseudonyms_that_join_and_no_column_that_nobody_described_is_shown(
    lake, keyed
):
    with connect(keyed, read_only=True) as connection:
        rows = connection.execute(
            "select card_id, thing, till, town, untold, n from masked.sales join masked.cards using (card_id)"
        ).fetchall()
    assert len({row[0] for row in rows}) == len(rows) == 20
    assert all(len(row[0]) == 32 for row in rows)
    assert {row[1:] for row in rows} == {("wine", 4, None, None, 1)}


def test_without_the_key_no_pseudonym_is_shown_and_with_another_each_is_another(lake, keyed):
    def seen(settings) -> set[str]:
        with connect(settings, read_only=True) as connection:
            return {c for (c,) in connection.execute("select card_id from masked.sales").fetchall()}

    assert seen(load_settings(privacy_key="")) == {None}
    assert not seen(keyed) & seen(load_settings(privacy_key=KEY + "!"))


def test_a_card_and_a_store_of_one_number_have_different_pseudonyms(lake, keyed):
    with connect(keyed, read_only=True) as connection:
        found = connection.execute(
            "select count(*) from masked.sales as a join masked.sales as b on a.card_id = b.store_id"
        ).fetchall()
    assert found == [(0,)]


def test_quasi_identifiers_are_months_and_first_digits_of_the_same_type(lake):
    kinds = [
        {name: kind for name, kind, *_ in lake.execute(f"describe from {schema}.sales").fetchall()}
        for schema in ("masked", "published")
    ]
    ids = dict.fromkeys(("card_id", "store_id"), "VARCHAR")
    assert kinds[0] == kinds[1] | ids
    rows = lake.execute("select distinct sold_at, sold_on from masked.sales").fetchall()
    assert rows == [(datetime(2026, 5, 1), date(2026, 5, 1))]
    for column in ("days", "price", "share"):
        for exact, shown in lake.execute(
            f"select p.{column}, m.{column} from (select *, row_number() over () as n from published.sales) as p"
            f" join (select *, row_number() over () as n from masked.sales) as m using (n)"
        ).fetchall():
            assert len(Decimal(f"{shown:.9g}").normalize().as_tuple().digits) == 1
            assert abs(float(shown)) <= abs(float(exact)) * 1.000001
            assert abs(float(exact - shown)) <= abs(float(shown)) * 1.000001


def test_the_key_is_nowhere_in_the_catalog_or_the_lake(lake, keyed):
    with connect(keyed) as connection:
        connection.execute("insert into features.sales by name select * from features.sales")
        release(connection, keyed, **CHECKS)
    texts = [text for (text,) in lake.execute("select sql from duckdb_views()").fetchall()]
    assert any("getvariable" in text for text in texts)
    files = [file for file in keyed.data_dir.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_masked_is_of_the_release_in_force_and_stays_so_when_columns_come_and_go(lake, settings):
    lake.execute("alter table features.sales drop column town")
    lake.execute("alter table features.sales add column email varchar default 'a@b.c'")
    lake.execute("drop table features.cards")
    release(lake, settings, **CHECKS)
    second = lake.execute("from masked.sales").fetchall()
    assert "a@b.c" not in {value for row in second for value in row}
    with pytest.raises(duckdb.CatalogException):
        lake.execute("from masked.cards")
    move(lake, settings, "r1")
    assert len(lake.execute("select town, untold from masked.sales").fetchall()) == 20
    assert len(lake.execute("from masked.cards").fetchall()) == 20


def test_a_tag_that_is_new_masks_at_once_without_a_new_release(lake, settings):
    assert lake.execute("select distinct thing from masked.sales").fetchall() == [("wine",)]
    write_down(lake, settings, TAGS | {"features.sales": SALES | {"thing": QUASI}})
    assert lake.execute("select distinct thing from masked.sales").fetchall() == [(None,)]


def test_a_key_that_can_be_guessed_is_refused_and_not_shown():
    with pytest.raises(MendableError, match="WATERSHED_PRIVACY_KEY") as error:
        load_settings(privacy_key="hunter2")
    assert "hunter2" not in str(error.value)


def test_what_is_shared_is_a_lake_of_its_own_without_identifiers_and_without_history(lake, keyed):
    with connect(keyed, read_only=True) as connection:
        assert share(connection, keyed)[0] == ["cards", "sales"]
    lake.execute("delete from features.sales where card_id = 7")
    lake.execute("drop table features.cards")
    release(lake, keyed, **CHECKS)
    with connect(keyed, read_only=True) as connection:
        names, attach = share(connection, keyed)
        masked = connection.execute("from masked.sales order by all").fetchall()
    assert names == ["sales"]
    with open_session(memory_limit="1GB", extensions=["ducklake", "sqlite_scanner"]) as reader:
        reader.execute(attach)
        assert reader.execute("from lake.published.sales order by all").fetchall() == masked
        assert len(masked) == 19
        assert reader.execute("select count(*) from lake.snapshots()").fetchall() == [(1,)]
    assert len(list(keyed.data_dir.joinpath("masked_lake").rglob("*.parquet"))) == 1


def test_nothing_is_shared_without_a_key(lake, settings):
    with pytest.raises(MendableError, match="WATERSHED_PRIVACY_KEY"):
        share(lake, settings)


def test_a_place_that_cannot_be_written_is_named(lake, keyed, tmp_path):
    (tmp_path / "file").write_text("in the way")
    elsewhere = load_settings(masked_lake_path=str(tmp_path / "file"))
    with (
        connect(elsewhere, read_only=True) as connection,
        pytest.raises(MendableError, match="WATERSHED_MASKED_LAKE_PATH"),
    ):
        share(connection, elsewhere)
