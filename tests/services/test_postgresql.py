"""A real PostgreSQL: as a source system, and as the warehouse's catalog. `make services` starts one."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from urllib.parse import urlsplit

import duckdb
import psycopg
import pyarrow as arrow
import pytest

from orchestration.connectors import SOURCE_POSITION, Batch, relational
from orchestration.connectors.relational import RelationalTable, read
from orchestration.contracts.raw import build_contract, contract_of
from orchestration.demo import retail_db
from orchestration.errors import MendableError, SourceUnavailableError
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame

HOUSEHOLDS = 30


def frame_of(settings, query):
    with connect(settings, read_only=True) as connection:
        return read_frame(connection, query)


def land_table(settings, source, contract):
    table = RawTable(
        f"{source.system}__{source.table}", contract, cursor=source.cursor, key=source.key
    )
    return land(settings, table, lambda position: read(source, position))


def retail(url, entity, cursor=None):
    return RelationalTable(
        url=url,
        table=entity,
        columns=tuple(contract_of("retail_db", entity).columns),
        system="retail_db",
        url_setting="WATERSHED_RETAIL_DB_URL",
        cursor=cursor,
    )


def shop(url, **changes):
    spec = {"table": "goods", "system": "shop", "url_setting": "WATERSHED_SHOP_URL", "key": ("id",)}
    return RelationalTable(url=url, **(spec | changes))


def run(url, *statements):
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def ids(batches):
    return [value for batch in batches for value in batch.rows["id"].to_pylist()]


@pytest.mark.parametrize(
    ("entity", "cursor"),
    [("transactions", "transaction_timestamp"), ("products", None), ("demographics", None)],
)
def test_the_same_rows_land_from_postgresql_as_from_sqlite(
    tmp_path, postgresql_database, entity, cursor
):
    retail_db.fill_postgresql(postgresql_database, households=HOUSEHOLDS)
    retail_db.fill(tmp_path / "retail.sqlite", households=HOUSEHOLDS)
    columns = ", ".join(contract_of("retail_db", entity).columns)
    frames = []
    for url in (postgresql_database, f"sqlite:///{tmp_path}/retail.sqlite"):
        settings = load_settings(data_dir=tmp_path / url.partition(":")[0])
        landed = land_table(settings, retail(url, entity, cursor), contract_of("retail_db", entity))
        assert landed.rows_quarantined == 0
        assert landed.rows_kept == landed.rows_in > 0
        frames.append(
            frame_of(settings, f"select {columns} from raw.retail_db__{entity} order by all")
        )
    assert frames[0].equals(frames[1])


def test_a_wrong_password_is_told_without_the_password(postgresql_database):
    parts = urlsplit(postgresql_database)
    wrong = postgresql_database.replace(f":{parts.password}@", ":s3cr3t-but-wrong@")
    with pytest.raises(SourceUnavailableError) as caught:
        list(read(retail(wrong, "products"), {}))
    assert "s3cr3t" not in str(caught.value)
    assert "WATERSHED_RETAIL_DB_URL" in str(caught.value)


def test_a_postgresql_catalog_holds_the_warehouse_and_a_replay_changes_nothing(
    tmp_path, postgresql_database, monkeypatch
):
    parts = urlsplit(postgresql_database)
    monkeypatch.setenv("PGPASSWORD", str(parts.password))
    catalog = (
        f"postgres:dbname={parts.path[1:]} host={parts.hostname} port={parts.port}"
        f" user={parts.username}"
    )
    settings = load_settings(data_dir=tmp_path / "data", catalog=catalog)
    contract = contract_of("campaign_api", "mailings")

    def rows(first):
        ids = list(range(first, first + 500))
        return arrow.table(
            {
                "campaign_id": [1] * 500,
                "household_id": ids,
                "published_at": ["2017-01-02T00:00:00Z"] * 500,
            }
        )

    def load(name):
        table = RawTable(f"campaign_api__{name}", contract, cursor="published_at")
        return land(settings, table, lambda position: iter([Batch(rows(1), {"week": "a"})]))

    assert [load(name).rows_kept for name in ("mailings", "mailings")] == [500, 0]
    assert frame_of(settings, "from raw.campaign_api__mailings").height == 500
    assert "password" not in str(settings).lower().replace("secretstr", "")


def test_every_type_survives_the_way_into_the_warehouse(settings, postgresql_database):
    run(
        postgresql_database,
        "set timezone = 'Asia/Tokyo'",
        "create type size as enum ('s', 'm')",
        "create domain cents as numeric(12, 2)",
        """create table goods (
            id bigint, small smallint, price numeric(12, 3), anything numeric, long numeric(50, 10),
            cost cents, day date, at timestamp, stamped timestamptz, took time, lasted interval,
            attributes jsonb, code uuid, numbers int[], texts text[], stamps timestamptz[],
            body bytea, yes boolean, size size, note text, short varchar(9), fixed char(3),
            ratio double precision, host inet, "we""ird 'name'; --" int
        )""",
        """insert into goods values (
            9223372036854775807, -1, 123456789.125, 1e30 + 0.1, 1e38 + 0.5, 0.10, '2020-02-29',
            '2020-01-01 10:00:00.123456', '2020-01-01 10:00:00.125+05', '23:59:59.5', '1 day 2 hours',
            '{"a": 1.10}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{1,null,3}', '{a,"b,c"}',
            '{2020-01-01 10:00+05}', '\\x00ff27', true, 'm', '😀 naïve', 'é', 'a', 0.1, '10.0.0.1', 7
        )""",
        "insert into goods (id) values (1)",
    )
    contract = build_contract(
        "shop.goods",
        {
            "id": {"dtype": "Int64"},
            "price": {"dtype": "Decimal(12, 3)", "nullable": True},
            "at": {"dtype": "Datetime", "nullable": True},
            "numbers": {"dtype": "List(Int64)", "nullable": True},
        },
    )
    landed = land_table(settings, shop(postgresql_database), contract)
    assert (landed.rows_kept, landed.rows_quarantined) == (2, 0)
    frame = frame_of(settings, "from raw.shop__goods order by id")
    empty, full = (
        {k: v for k, v in row.items() if not k.startswith("_")} for row in frame.to_dicts()
    )
    assert {k for k, v in empty.items() if v is not None} == {"id"}
    assert full == {
        "id": 9223372036854775807,
        "small": -1,
        "price": Decimal("123456789.125"),
        "anything": "1000000000000000000000000000000.1",
        "long": "100000000000000000000000000000000000000.5000000000",
        "cost": Decimal("0.10"),
        "day": date(2020, 2, 29),
        "at": datetime(2020, 1, 1, 10, 0, 0, 123456),
        "stamped": datetime(2020, 1, 1, 5, 0, 0, 125000),
        "took": time(23, 59, 59, 500000),
        "lasted": "1 day 02:00:00",
        "attributes": '{"a": 1.10}',
        "code": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "numbers": full["numbers"],
        "texts": '["a","b,c"]',  # which no contract says is a list
        "stamps": full["stamps"],
        "body": b"\x00\xff'",
        "yes": True,
        "size": "m",
        "note": "😀 naïve",
        "short": "é",
        "fixed": "a",
        "ratio": 0.1,
        "host": "10.0.0.1/32",
        "we\"ird 'name'; --": 7,
    }
    assert list(full["numbers"]) == [1, None, 3]
    assert "2020-01-01T05:00:00" in full["stamps"]


def test_a_value_that_its_type_could_only_hold_changed_sets_its_row_aside(postgresql_database):
    run(
        postgresql_database,
        "create table goods (id int, price numeric(9, 2), at timestamp, took time, numbers int[])",
        "insert into goods values (1, 1.5, 'infinity', '10:00', '{1}'), (2, 'NaN', null, null, null),"
        " (3, null, '294270-01-01', null, null), (4, null, null, '24:00', null),"
        " (5, null, null, null, '{{1,2},{3,4}}')",
    )
    (batch,) = read(shop(postgresql_database), {})
    assert ids([batch]) == [1]
    told = {
        bad[SOURCE_POSITION]: bad["reason"].partition(":")[0] for bad in batch.rejected.to_pylist()
    }
    assert told == {'["2"]': "price", '["3"]': "at", '["4"]': "took", '["5"]': "numbers"}


@pytest.mark.parametrize(
    ("kind", "values", "position"),
    [
        ("bigint", ("1", "9223372036854775807"), "9223372036854775807"),
        ("numeric", ("0.1", "1e30 + 0.1"), "1000000000000000000000000000000.1"),
        ("numeric(9, 2)", ("0.1", "0.11"), "0.11"),
        ("date", ("'2020-01-01'", "'2020-01-02'"), None),
        ("timestamp", ("'2020-01-01'", "'2020-01-01 00:00:00.000001'"), None),
        ("timestamptz", ("'2020-01-01 00:00+05'", "'2020-01-01 00:00+04'"), "2019-12-31 20:00:00"),
        ("text", ("'a''\\'", "'z😀'"), "z😀"),
    ],
)
def test_reading_on_finds_the_newest_row_again_and_no_other(
    postgresql_database, kind, values, position
):
    run(
        postgresql_database,
        f'create table "go""ods" (id int, "cur sor" {kind})',
        *(f'insert into "go""ods" values ({i}, {value})' for i, value in enumerate(values)),
        'insert into "go""ods" values (9, null)',
    )
    strange = [9]
    if kind in ("timestamp", "timestamptz", "numeric"):
        run(postgresql_database, """insert into "go""ods" values (10, 'infinity')""")
        strange.append(10)
    source = shop(postgresql_database, table='go"ods', cursor="cur sor")
    batches = list(read(source, {}))
    assert ids(batches) == [0, 1, *strange]
    if position:
        assert batches[-1].position == {"cursor": position}
    again = list(read(source, batches[-1].position))
    assert ids(again) == [1, *strange]


def test_a_table_is_found_in_its_schema_and_an_absent_one_names_the_others(postgresql_database):
    run(
        postgresql_database,
        "create schema other",
        "create table other.goods (id int)",
        "insert into other.goods values (1)",
    )
    assert ids(read(shop(postgresql_database, schema="other"), {})) == [1]
    with pytest.raises(MendableError, match="goods"):
        list(read(shop(postgresql_database), {}))


def test_a_server_that_goes_away_is_worth_another_try(postgresql_database):
    run(
        postgresql_database,
        "create table goods as select i as id, repeat(md5(i::text), 100) as note"
        " from generate_series(1, 30000) as i",
    )
    batches = read(shop(postgresql_database), {}, batch_rows=2048)
    next(batches)
    run(
        postgresql_database,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )
    with pytest.raises(SourceUnavailableError) as caught:
        list(batches)
    assert str(urlsplit(postgresql_database).password) not in str(caught.value)
    assert "WATERSHED_SHOP_URL" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("timestamptz", "null, infinity, -infinity, 9999-01-01, 0044-01-01 BC"),
        ("timestamp", "null, infinity, -infinity, 9999-01-01, 0044-01-01 BC"),
        ("date", "null, infinity, -infinity, 9999-01-01, 0044-01-01 BC"),
        ("numeric", "null, NaN, Infinity, -Infinity"),
    ],
)
def test_an_odd_cursor_hides_no_row_to_come(postgresql_database, kind, odd):
    usual = "5" if kind == "numeric" else "2020-01-01"
    values = [f"'{value}'" if value != "null" else value for value in odd.split(", ")]
    run(
        postgresql_database,
        f"create table goods (id int, c {kind})",
        *(f"insert into goods values ({i}, {value})" for i, value in enumerate(values)),
    )
    source, everything = shop(postgresql_database, cursor="c"), list(range(len(values)))
    batches = list(read(source, {}))
    assert (ids(batches), batches[-1].position) == (everything, {"cursor": None})
    run(postgresql_database, f"insert into goods values (100, '{usual}')")
    batches = list(read(source, batches[-1].position))
    assert sorted(ids(batches)) == [*everything, 100]
    run(postgresql_database, f"insert into goods values (101, '{usual}')")
    assert sorted(ids(read(source, batches[-1].position))) == [*everything, 100, 101]


def test_a_row_that_is_committed_late_is_seen_within_the_overlap(postgresql_database):
    run(postgresql_database, "create table goods (id int primary key, at timestamptz not null)")
    with psycopg.connect(postgresql_database) as slow:
        slow.execute("insert into goods values (1, '2020-01-01 10:00+00')")
        run(postgresql_database, "insert into goods values (2, '2020-01-01 10:30+00')")
        (first,) = read(shop(postgresql_database, cursor="at"), {})
        slow.commit()
    assert ids([first]) == [2]
    assert ids(read(shop(postgresql_database, cursor="at"), first.position)) == [2]
    within = shop(postgresql_database, cursor="at", overlap="1 hour")
    assert ids(read(within, first.position)) == [1, 2]


def test_rows_that_change_while_a_first_read_is_under_way_are_not_lost(
    postgresql_database, monkeypatch
):
    monkeypatch.setattr(relational, "RANGE_ROWS", 1_000)
    run(
        postgresql_database,
        "create table goods as select i as id, timestamp '2020-01-01' + i * interval '1 minute' as at"
        " from generate_series(1, 5000) as i",
    )
    source = shop(postgresql_database, cursor="at")
    reading = read(source, {})
    seen = [next(reading), next(reading)]
    run(
        postgresql_database,
        "update goods set at = at + interval '1 year' where id % 100 = 0",
        "insert into goods select i, timestamp '2021-06-01' from generate_series(5001, 5010) as i",
    )
    seen += reading
    assert len(seen) == 5
    seen += read(source, seen[-1].position)
    landed = {tuple(row.values()) for batch in seen for row in batch.rows.to_pylist()}
    with psycopg.connect(postgresql_database) as connection:
        assert set(connection.execute("select id, at from goods").fetchall()) <= landed


def test_the_keys_that_are_there_are_told_whatever_their_number(postgresql_database, monkeypatch):
    monkeypatch.setattr(relational, "BATCH_BYTES", 50_000)
    run(
        postgresql_database,
        "create table goods as select i as id, 'é' || i as name from generate_series(1, 20000) as i",
    )
    source = shop(postgresql_database, cursor="id", key=("name", "id"), deletes=True)
    for batch in read(source, {}):
        present = batch.present_keys
        if present is not None:
            # As landing does: another DuckDB reads them while this one does.
            counted = "select count(*), max(name), min(id) from present"
            assert duckdb.sql(counted).fetchall() == [(20_000, "é9999", 1)]
    assert present is not None


def test_views_and_partitioned_tables_are_tables_and_names_in_another_case_are_others(
    postgresql_database,
):
    run(
        postgresql_database,
        'create table goods (id int not null, "ID" int) partition by range (id)',
        "create table goods_1 partition of goods for values from (0) to (10)",
        "create table goods_2 partition of goods for values from (10) to (20)",
        "insert into goods select i, -i from generate_series(0, 19) as i",
        "create view few as select * from goods where id < 5",
        "create materialized view fewer as select * from goods where id < 3",
    )
    for name, rows in (("goods", 20), ("few", 5), ("fewer", 3)):
        batches = list(read(shop(postgresql_database, table=name, cursor="id"), {}))
        assert sorted(ids(batches)) == list(range(rows))
        assert batches[0].rows["ID"].to_pylist() == [-i for i in ids(batches[:1])]


def test_a_table_that_this_user_may_not_read_is_said_to_be_so(postgresql_database):
    parts = urlsplit(postgresql_database)
    clerk, password = f"clerk_{parts.path[1:]}", "pass%2Fword%401"
    run(
        postgresql_database,
        "create table goods (id int)",
        f"create role {clerk} login password 'pass/word@1'",
    )
    try:
        netloc = f"{clerk}:{password}@{parts.hostname}:{parts.port}"
        with pytest.raises(MendableError, match="may not read") as caught:
            list(read(shop(parts._replace(netloc=netloc).geturl()), {}))
        assert not isinstance(caught.value, SourceUnavailableError)
        assert "word" not in str(caught.value)
    finally:
        run(postgresql_database, f"drop role {clerk}")
