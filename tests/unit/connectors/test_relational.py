"""Relational sources: every row, in order, from any position, and errors that say nothing private."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing

import pytest

from orchestration.connectors import relational
from orchestration.connectors.relational import RelationalTable, read
from orchestration.errors import MendableError, SourceUnavailableError

COLUMNS = ("id", "amount_usd", "sold_at")
SALES = [
    (3, 1.39, "2020-01-03 10:00:00"),
    (1, 2.00, "2020-01-01 10:00:00"),
    (2, 0.10, "2020-01-02 10:00:00"),
    (5, 5.00, "2020-01-04 10:00:00"),
    (4, 4.00, "2020-01-04 10:00:00"),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shop.sqlite"
    change(
        path,
        "create table sales (id bigint, amount_usd numeric(12,2), sold_at timestamp, note text)",
        *(f"insert into sales values ({i}, {a}, '{at}', 'n')" for i, a, at in SALES),
    )
    return path


def change(path, *statements):
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def sales(file, **changes):
    spec = {
        "url": f"sqlite:///{file}",
        "table": "sales",
        "columns": COLUMNS,
        "system": "shop",
        "url_setting": "WATERSHED_SHOP_URL",
        "cursor": "sold_at",
    }
    return RelationalTable(**(spec | changes))


def ids(batches):
    return [int(value) for batch in batches for value in batch.rows["id"].to_pylist()]


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_first_read_brings_every_row_in_the_cursors_order(file):
    (batch,) = read(sales(file), {})
    assert ids([batch])[:3] == [1, 2, 3]
    assert sorted(ids([batch])) == [1, 2, 3, 4, 5]
    assert batch.rows.column_names == list(COLUMNS)
    assert batch.position == {"cursor": "2020-01-04 10:00:00"}


def test_batches_hold_no_more_rows_than_asked(file):
    change(
        file,
        "insert into sales with recursive n(i) as (select 6 union all select i + 1 from n"
        " where i < 10000) select i, 1, '2020-02-01 00:00:00', null from n",
    )
    batches = list(read(sales(file), {}, batch_rows=3000))
    assert max(batch.rows.num_rows for batch in batches) <= 3000
    assert sorted(ids(batches)) == list(range(1, 10_001))


def test_reading_on_from_any_batch_misses_nothing(file):
    batches = list(read(sales(file), {}, batch_rows=1))
    assert len(batches) == len(SALES)
    for landed in range(1, len(batches) + 1):
        rest = read(sales(file), batches[landed - 1].position, batch_rows=1)
        assert set(ids(batches[:landed])) | set(ids(rest)) == {1, 2, 3, 4, 5}


def test_rows_tied_at_the_position_are_read_again_with_those_that_joined_them(file):
    (first,) = read(sales(file), {})
    change(file, "insert into sales values (6, 6, '2020-01-04 10:00:00', null)")
    (again,) = read(sales(file), first.position)
    assert sorted(ids([again])) == [4, 5, 6]
    assert again.position == first.position


def test_nothing_is_yielded_by_a_growing_table_that_is_empty(file):
    change(file, "delete from sales")
    assert list(read(sales(file), {})) == []


def test_rows_without_a_readable_cursor_come_every_time_and_never_become_the_position(file):
    change(
        file,
        "insert into sales values (7, 1, null, null)",
        "insert into sales values (8, 1, 'yesterday', null)",
    )
    batches = list(read(sales(file), {}, batch_rows=1))
    assert ids(batches)[2:5] == [1, 2, 3]
    assert batches[0].position == batches[1].position == {}
    (again,) = read(sales(file), batches[-1].position)
    assert sorted(ids([again])) == [4, 5, 7, 8]
    change(file, "delete from sales where id < 7")
    assert [batch.position for batch in read(sales(file), {})] == [{}]


def test_values_that_break_their_declared_type_arrive_as_they_are(file):
    change(file, "insert into sales values ('seven', 'n/a', '2020-01-05', null)")
    (batch,) = read(sales(file), {})
    assert batch.rows.to_pylist()[-1] == {
        "id": "seven",
        "amount_usd": "n/a",
        "sold_at": "2020-01-05",
    }
    assert "1.39" in batch.rows["amount_usd"].to_pylist()


def test_an_integer_cursor_is_ordered_as_a_number(file):
    change(file, "insert into sales values (10, 1, null, null)")
    batches = list(read(sales(file, cursor="id"), {}, batch_rows=1))
    assert ids(batches) == [1, 2, 3, 4, 5, 10]
    assert ids(read(sales(file, cursor="id"), {"cursor": "9"})) == [10]


def test_a_table_without_a_cursor_is_read_whole_with_one_position(file):
    batches = list(read(sales(file, cursor=None), {}, batch_rows=2))
    assert sorted(ids(batches)) == [1, 2, 3, 4, 5]
    assert len({batch.position["fingerprint"] for batch in batches}) == 1
    assert batches[0].position["rows"] == 5


def test_a_table_that_has_not_changed_is_counted_and_not_sent(file):
    (first,) = read(sales(file, cursor=None), {})
    change(
        file,
        "create table other as select * from sales order by id desc",
        "drop table sales",
        "alter table other rename to sales",
    )
    (again,) = read(sales(file, cursor=None), first.position)
    assert (again.rows.num_rows, again.unchanged_rows) == (0, 5)
    assert again.position == first.position


@pytest.mark.parametrize(
    "statement",
    [
        "update sales set amount_usd = 9 where id = 1",
        "update sales set amount_usd = null where id = 1",
        "delete from sales where id = 1",
        "insert into sales select * from sales where id = 1",
    ],
)
def test_a_table_that_has_changed_is_read_whole(file, statement):
    (first,) = read(sales(file, cursor=None), {})
    change(file, statement)
    (again,) = read(sales(file, cursor=None), first.position)
    assert again.unchanged_rows == 0
    assert again.rows.num_rows == again.position["rows"] > 0
    assert again.position != first.position


def test_a_whole_table_that_became_empty_still_has_a_batch_that_says_so(file):
    (first,) = read(sales(file, cursor=None), {})
    change(file, "delete from sales")
    (again,) = read(sales(file, cursor=None), first.position)
    assert again.rows.num_rows == again.unchanged_rows == 0
    assert again.rows.column_names == list(COLUMNS)
    assert again.position["rows"] == 0


def test_columns_beyond_the_contract_are_named_and_left_there(file):
    (batch,) = read(sales(file), {})
    assert batch.unexpected_columns == ("note",)
    assert "note" not in batch.rows.column_names


def test_reading_changes_nothing_in_the_source(file):
    before = file.read_bytes()
    list(read(sales(file), {}))
    list(read(sales(file, cursor=None), {}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_missing_column_names_what_was_expected_what_came_and_the_contract(file):
    change(file, "alter table sales rename column amount_usd to amount")
    with pytest.raises(MendableError) as caught:
        list(read(sales(file), {}))
    assert caught.value.thing == "shop.sales: column amount_usd"
    assert "amount_usd" in caught.value.expected
    assert "amount" in caught.value.arrived.split(", ")
    assert "orchestration/contracts/shop.py" in caught.value.mend


def test_a_missing_table_names_the_tables_there_are(file):
    with pytest.raises(MendableError, match=r"shop\.refunds") as caught:
        list(read(sales(file, table="refunds"), {}))
    assert caught.value.arrived == "sales"


def test_a_missing_file_is_named_and_not_created(tmp_path):
    absent = tmp_path / "absent.sqlite"
    with pytest.raises(MendableError, match="make demo") as caught:
        list(read(sales(absent), {}))
    assert str(absent) in caught.value.thing
    assert not absent.exists()


def test_a_file_that_is_not_a_database_is_said_to_be_none(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("not a database " * 100)
    with pytest.raises(MendableError, match="not an SQLite database"):
        list(read(sales(other), {}))


def test_a_damaged_file_is_an_error_and_not_fewer_rows(file):
    change(
        file,
        "insert into sales with recursive n(i) as (select 6 union all select i + 1 from n"
        " where i < 9999) select i, 1, '2020-02-01 00:00:00', 'private' from n",
    )
    content = bytearray(file.read_bytes())
    content[4096 * 5 : 4096 * 9] = b"\xff" * 4096 * 4
    file.write_bytes(content)
    with pytest.raises(MendableError) as caught:
        list(read(sales(file), {}))
    assert "private" not in str(caught.value)


def test_a_file_that_another_program_keeps_locked_is_worth_another_try(file, monkeypatch):
    monkeypatch.setattr(relational, "TIMEOUT_SECONDS", 0)
    hold = (
        "import sqlite3, sys; other = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " other.execute('begin exclusive'); print(flush=True); sys.stdin.read()"
    )
    # In a process of its own: SQLite's locks do not bind the process that holds them.
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(SourceUnavailableError, match="locked"):
            list(read(sales(file), {}))
        other.stdin.close()


def test_a_server_that_does_not_answer_is_worth_another_try_and_its_password_stays_secret():
    port = closed_port()
    source = sales(None, url=f"postgresql://clerk:s3cret@127.0.0.1:{port}/shop")
    with pytest.raises(SourceUnavailableError, match="nothing listens there") as caught:
        list(read(source, {}))
    assert f"127.0.0.1:{port}" in caught.value.thing
    assert "WATERSHED_SHOP_URL" in caught.value.mend
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + repr(source)


def test_a_url_of_another_kind_names_its_setting_and_not_its_content():
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_URL") as caught:
        list(read(sales(None, url="mysql://clerk:s3cret@host/shop"), {}))
    assert "s3cret" not in str(caught.value)


def test_text_that_is_not_utf_8_stops_at_the_source(file):
    change(file, "insert into sales values (9, 1, '2020-01-09', cast(x'ff53' as text))")
    for cursor in ("sold_at", None):
        source = sales(file, columns=(*COLUMNS, "note"), cursor=cursor)
        with pytest.raises(MendableError, match="not UTF-8"):
            list(read(source, {}))


def test_an_error_quotes_no_value(file):
    position = {"cursor": "private"}
    with pytest.raises(MendableError, match="withheld") as caught:
        list(read(sales(file, cursor="id"), position))
    assert "private" not in "".join(traceback.format_exception(caught.value))
