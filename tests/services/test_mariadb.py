"""A real MariaDB as a source system: every value as it is, and errors without the password."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from datetime import date, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import pymysql
import pytest

from orchestration.connectors import SOURCE_POSITION, relational
from orchestration.connectors.relational import RelationalTable, read
from orchestration.contracts.raw import build_contract
from orchestration.errors import MendableError, SourceUnavailableError
from tests.services.test_postgresql import frame_of, land_table

LONGEST = Decimal("-" + "9" * 35 + "." + "9" * 30)


def run(url, *statements):
    parts = urlsplit(url)
    with (
        pymysql.connect(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=parts.password,
            database=parts.path[1:],
            charset="utf8mb4",
            autocommit=True,
        ) as connection,
        connection.cursor() as cursor,
    ):
        for statement in ("set sql_mode = ''", *statements):
            cursor.execute(statement)


def shop(url, **changes):
    spec = {"table": "goods", "system": "shop", "url_setting": "WATERSHED_SHOP_URL", "key": ("id",)}
    return RelationalTable(url=url, **(spec | changes))


def rows_of(batches):
    return [row for batch in batches for row in batch.rows.to_pylist()]


GOODS = """
create table goods (
    id bigint unsigned, small tinyint(1), price decimal(12, 3), longest decimal(65, 30),
    day date, at datetime(6), stamped timestamp(3) null, took time(6), note text character set utf8mb4,
    latin varchar(20) character set latin1, exact varchar(20) collate utf8mb4_bin, attributes json,
    size enum('s', 'm'), tags set('a', 'b'), body blob, fixed binary(3), bits bit(9), yes bit(1),
    ratio double, born year, `we``ird "name"; --` int
) character set utf8mb4
"""


def test_every_type_survives_the_way_into_the_warehouse(settings, mariadb_database):
    run(
        mariadb_database,
        "set time_zone = '+05:00'",
        GOODS,
        f"""insert into goods values (
            18446744073709551615, 2, 123456789.125, {LONGEST}, '2020-02-29',
            '2020-01-01 10:00:00.123456', '2020-01-01 10:00:00.125', '25:00:00.5', '😀 naïve', 'é',
            'É', '{{"a": 1.10}}', 'm', 'a,b', x'00ff27', x'0001ff', b'100000001', b'1', 0.1, 1999, 7
        )""",
        "insert into goods (id) values (1)",
    )
    contract = build_contract(
        "shop.goods",
        {
            "id": {"dtype": "String"},
            "small": {"dtype": "Int64", "nullable": True},
            "longest": {"dtype": "String", "nullable": True},
            "at": {"dtype": "Datetime", "nullable": True},
        },
    )
    landed = land_table(settings, shop(mariadb_database), contract)
    assert (landed.rows_kept, landed.rows_quarantined) == (2, 0)
    frame = frame_of(settings, "from raw.shop__goods order by length(id)")
    empty, full = (
        {k: v for k, v in row.items() if not k.startswith("_")} for row in frame.to_dicts()
    )
    assert {k for k, v in empty.items() if v is not None} == {"id"}
    took, ratio = full.pop("took"), full.pop("ratio")
    assert full == {
        "id": "18446744073709551615",
        "small": 2,
        "price": Decimal("123456789.125"),
        "longest": str(LONGEST),
        "day": date(2020, 2, 29),
        "at": datetime(2020, 1, 1, 10, 0, 0, 123456),
        "stamped": datetime(2020, 1, 1, 5, 0, 0, 125000),
        "note": "😀 naïve",
        "latin": "é",
        "exact": "É",
        "attributes": '{"a": 1.10}',
        "size": "m",
        "tags": "a,b",
        "body": b"\x00\xff'",
        "fixed": b"\x00\x01\xff",
        "bits": 257,
        "yes": full["yes"],
        "born": 1999,
        'we`ird "name"; --': 7,
    }
    assert full["yes"] in (True, 1, b"\x01")
    assert took == "25:00:00.500000"
    assert ratio == 0.1


def test_a_date_that_is_none_sets_its_row_aside(mariadb_database):
    run(
        mariadb_database,
        "create table goods (id int, at datetime(6), day date)",
        "insert into goods values (1, '2020-01-01', '2020-01-01'), (2, '0000-00-00', '2020-01-01'),"
        " (3, '2020-01-02', '2020-00-10')",
    )
    for cursor in ("at", None):
        batches = list(read(shop(mariadb_database, cursor=cursor), {}))
        assert [row["id"] for row in rows_of(batches)] == [1]
        bad = [b for batch in batches if batch.rejected for b in batch.rejected.to_pylist()]
        assert {b[SOURCE_POSITION]: b["reason"].partition(":")[0] for b in bad} == {
            '["2"]': "at",
            '["3"]': "day",
        }
        assert any(b'"0000-00-00 00:00:00.000000"' in b["raw"] for b in bad)


@pytest.mark.parametrize(
    ("kind", "values", "position"),
    [
        ("bigint unsigned", ("1", "18446744073709551615"), "18446744073709551615"),
        ("decimal(65, 30)", ("0.1", "1.000000000000000000000000000001"), None),
        ("datetime(6)", ("'2020-01-01'", "'2020-01-01 00:00:00.000001'"), None),
        ("timestamp(6)", ("'2020-01-01'", "'2020-01-01 00:00:00.000001'"), None),
        ("date", ("'2020-01-01'", "'2020-01-02'"), None),
        ("varchar(9) character set utf8mb4", ("'a''\\\\'", "'z😀'"), "z😀"),
        ("varchar(9) character set utf8mb4 collate utf8mb4_bin", ("'a'", "'z😀'"), "z😀"),
    ],
)
def test_reading_on_finds_the_newest_row_again_and_no_other(
    mariadb_database, kind, values, position
):
    run(
        mariadb_database,
        f"create table `go``ods` (id int, `cur sor` {kind} null)",
        *(f"insert into `go``ods` values ({i}, {value})" for i, value in enumerate(values)),
        "insert into `go``ods` values (9, null)",
    )
    source = shop(mariadb_database, table="go`ods", cursor="cur sor")
    batches = list(read(source, {}))
    assert [row["id"] for row in rows_of(batches)] == [0, 1, 9]
    if position:
        assert batches[-1].position == {"cursor": position}
    again = list(read(source, batches[-1].position))
    assert [row["id"] for row in rows_of(again)] == [1, 9]


def test_an_unchanged_table_is_counted_and_deletions_are_seen(mariadb_database):
    run(
        mariadb_database,
        "create table goods (id int, note varchar(9))",
        "insert into goods values (1, 'a'), (2, null)",
    )
    (first,) = read(shop(mariadb_database), {})
    (again,) = read(shop(mariadb_database), first.position)
    assert (again.unchanged_rows, again.rows.num_rows) == (2, 0)
    *_, last = read(shop(mariadb_database, cursor="id", deletes=True), {"cursor": "2"})
    assert last.present_keys.read_all()["id"].to_pylist() == [1, 2]


def test_errors_are_told_without_the_password(mariadb_database):
    parts = urlsplit(mariadb_database)
    wrong = mariadb_database.replace(f":{parts.password}@", ":s3cr3t-but-wrong@")
    with pytest.raises(SourceUnavailableError, match="password") as caught:
        list(read(shop(wrong), {}))
    assert "s3cr3t" not in str(caught.value)
    run(mariadb_database, "create table others (id int)")
    with pytest.raises(MendableError, match="others") as missing:
        list(read(shop(mariadb_database), {}))
    assert parts.password not in str(missing.value)


@contextmanager
def through(url):
    """The same URL by way of a port that `cut` closes, with all its connections."""
    parts, ends = urlsplit(url), []

    def pass_on(source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        hang_up(source, target)

    def hang_up(*sockets):
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def serve():
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((parts.hostname, parts.port))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        netloc = f"{parts.username}:{parts.password}@127.0.0.1:{listener.getsockname()[1]}"
        yield parts._replace(netloc=netloc).geturl(), lambda: hang_up(listener, *ends)


def test_a_server_that_goes_away_is_worth_another_try(mariadb_database, monkeypatch):
    monkeypatch.setattr(relational, "RANGE_ROWS", 100)
    run(
        mariadb_database,
        "create table goods (id int)",
        "insert into goods select seq from seq_1_to_1000",
    )
    with through(mariadb_database) as (url, cut):
        batches = read(shop(url, cursor="id"), {})
        next(batches)
        cut()
        with pytest.raises(SourceUnavailableError) as caught:
            list(batches)
    assert urlsplit(mariadb_database).password not in str(caught.value)
    assert "WATERSHED_SHOP_URL" in str(caught.value)


@pytest.mark.parametrize("cursor", ["id", None])
def test_rows_are_streamed_and_a_reader_that_is_slow_is_not_cut_off(mariadb_database, cursor):
    run(
        mariadb_database,
        "create table goods (id int)",
        "insert into goods select seq from seq_1_to_2000000",
    )
    batches = read(shop(mariadb_database, cursor=cursor), {}, batch_rows=10_000)
    seen = next(batches).rows.num_rows
    parts = urlsplit(mariadb_database)
    with pymysql.connect(
        host=parts.hostname, port=parts.port, user=parts.username, password=parts.password
    ) as connection:
        watch = connection.cursor()
        watch.execute(
            "select info from information_schema.processlist where db = %s and info is not null",
            [parts.path[1:]],
        )
        ((statement,),) = watch.fetchall()
    # It is still being answered, and the server has been asked to be patient.
    assert "from `goods`" in statement
    assert "net_write_timeout = 3600" in statement
    assert seen + sum(batch.rows.num_rows for batch in batches) == 2_000_000
