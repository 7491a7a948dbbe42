"""Relational sources: every row, from any position, after any crash, and errors that say nothing private."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.connectors import SOURCE_POSITION, Span, Whole, relational, relational_dialects
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
MANY = (
    "insert into sales with recursive n(i) as (select 6 union all select i + 1 from n"
    " where i < 9999) select i, 1, '2020-02-01 00:00:00', 'private' from n"
)


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


def whole(file, **changes):
    return sales(file, cursor=None, **changes)


def rows_of(batches):
    return [row for batch in batches for row in batch.rows.to_pylist()]


def ids(batches):
    return [int(row["id"]) for row in rows_of(batches)]


def position_after(batches, position):
    """Where the source stands once these batches have landed, as far as they are complete."""
    return next((b.position for b in reversed(batches) if b.completes), position)


def transactions(batches):
    """The batches as landing commits them."""
    ends = [i + 1 for i, batch in enumerate(batches) if batch.completes]
    return [batches[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# A whole table


def test_a_table_without_a_cursor_replaces_all_rows_in_one_transaction(file):
    batches = list(read(whole(file), {}, batch_rows=2))
    assert [batch.rows.num_rows for batch in batches] == [2, 2, 1]
    assert [batch.completes for batch in batches] == [False, False, True]
    assert [batch.replaces for batch in batches] == [Whole.TABLE, (), ()]
    assert all(batch.first_time for batch in batches)
    assert sorted(ids(batches)) == [1, 2, 3, 4, 5]
    assert batches[-1].position["rows"] == 5
    assert batches[0].rows.column_names == [*COLUMNS, "note"]


def test_the_fingerprint_depends_neither_on_batches_nor_on_the_order_of_rows(file):
    batches = list(read(whole(file), {}, batch_rows=2))
    change(
        file,
        "create table other as select * from sales order by id desc",
        "drop table sales",
        "create table sales (id bigint, amount_usd numeric(12,2), sold_at timestamp, note text)",
        "insert into sales select * from other",
    )
    (again,) = read(whole(file), batches[-1].position)
    assert (again.rows.num_rows, again.unchanged_rows, again.replaces) == (0, 5, ())
    assert again.completes
    assert again.position == batches[-1].position


@pytest.mark.parametrize(
    "statement",
    [
        "update sales set amount_usd = 9 where id = 1",
        "update sales set amount_usd = null where id = 1",
        "update sales set note = '' where id = 1",
        "delete from sales where id = 1",
        "insert into sales select * from sales where id = 1",
        "update sales set id = 7 - id where id in (3, 4)",
        "alter table sales add column vat numeric",
        "alter table sales rename column note to remark",
        "update sales set note = cast(x'ff' as text) where id = 1",
    ],
)
def test_a_table_that_has_changed_is_sent_whole(file, statement):
    first = list(read(whole(file), {}))
    change(file, statement)
    batches = list(read(whole(file), first[-1].position))
    sent = sum(b.rows.num_rows + (b.rejected.num_rows if b.rejected else 0) for b in batches)
    assert sent == batches[-1].position["rows"] > 0
    assert batches[0].replaces is Whole.TABLE
    assert batches[-1].position != first[-1].position


def test_a_whole_table_that_became_empty_still_has_a_batch_that_says_so(file):
    (first,) = read(whole(file), {})
    change(file, "delete from sales")
    (again,) = read(whole(file), first.position)
    assert again.rows.num_rows == again.unchanged_rows == 0
    assert again.replaces is Whole.TABLE
    assert again.completes
    assert again.rows.column_names == [*COLUMNS, "note"]
    assert again.position["rows"] == 0
    (still,) = read(whole(file), again.position)
    assert (still.replaces, still.position) == ((), again.position)


# A growing table


def test_a_first_read_brings_every_row_and_vouches_for_it(file):
    (batch,) = read(sales(file), {})
    assert sorted(ids([batch])) == [1, 2, 3, 4, 5]
    assert batch.position == {"cursor": "2020-01-04 10:00:00"}
    assert batch.first_time


def test_batches_hold_no_more_rows_than_asked(file):
    change(file, MANY)
    for source in (sales(file), whole(file)):
        batches = list(read(source, {}, batch_rows=3000))
        assert max(batch.rows.num_rows for batch in batches) <= 3000
        assert sorted(ids(batches)) == list(range(1, 10_000))


def test_batches_hold_no_more_bytes_than_allowed(file, monkeypatch):
    change(file, MANY)
    monkeypatch.setattr(relational, "BATCH_BYTES", 200_000)
    batches = list(read(sales(file), {}))
    assert len(batches) > 2
    assert max(batch.rows.nbytes for batch in batches) <= 200_000
    assert len(set(ids(batches))) == 9999


def test_rows_tied_at_the_position_are_read_again_with_those_that_joined_them(file):
    (first,) = read(sales(file), {})
    change(file, "insert into sales values (6, 6, '2020-01-04 10:00:00', null)")
    (again,) = read(sales(file), first.position)
    assert sorted(ids([again])) == [4, 5, 6]
    assert again.position == first.position
    assert not again.first_time


def test_a_later_read_comes_in_the_cursors_order(file):
    batches = list(read(sales(file), {"cursor": "2020-01-02 10:00:00"}, batch_rows=1))
    assert ids(batches)[:2] == [2, 3]
    assert sorted(ids(batches)) == [2, 3, 4, 5]


@pytest.mark.parametrize("overlap", ["2 days", "47 hours", "1 day 1 hour"])
def test_rows_committed_late_within_the_overlap_are_seen_and_those_behind_it_are_not(file, overlap):
    (first,) = read(sales(file), {})
    change(
        file,
        "insert into sales values (6, 6, '2020-01-03 09:30:00', null)",
        "insert into sales values (7, 7, '2020-01-02 09:30:00', null)",
    )
    assert sorted(ids(read(sales(file), first.position))) == [4, 5]
    batches = list(read(sales(file, overlap=overlap), first.position))
    assert 6 in ids(batches)
    assert 7 not in ids(batches)
    assert not any(batch.first_time for batch in batches)


def test_a_number_cursor_is_ordered_as_a_number_and_overlaps_by_one(file):
    change(file, "insert into sales values (10, 1, null, null)")
    (first,) = read(sales(file, cursor="id"), {})
    assert first.position == {"cursor": "10"}
    assert ids(read(sales(file, cursor="id"), {"cursor": "9"})) == [10]
    assert ids(read(sales(file, cursor="id", overlap=6), {"cursor": "10"})) == [4, 5, 10]
    assert ids(read(sales(file, cursor="id", overlap="6"), {"cursor": "10"})) == [4, 5, 10]
    assert ids(read(sales(file, cursor="id", overlap=5.5), {"cursor": "10"})) == [4, 5, 10]


def test_a_decimal_cursor_is_exact(file):
    change(file, "update sales set amount_usd = '0.3' where id = 1")
    source = sales(file, cursor="amount_usd")
    assert sorted(ids(read(source, {"cursor": "0.3"}))) == [1, 3, 4, 5]
    assert sorted(ids(read(source, {"cursor": "0.300000001"}))) == [3, 4, 5]
    assert position_after(list(read(source, {})), {}) == {"cursor": "5.000000000"}


def test_a_text_cursor_is_ordered_by_its_characters(file):
    change(file, "update sales set note = 'Zoë' where id = 1", "update sales set note = 'é'")
    change(file, "update sales set note = 'a''b' where id = 2")
    (first,) = read(sales(file, cursor="note"), {})
    assert first.position == {"cursor": "é"}
    assert ids(read(sales(file, cursor="note"), {"cursor": "b"})) == [3, 1, 5, 4]
    assert sorted(ids(read(sales(file, cursor="note"), {"cursor": "a'b"}))) == [1, 2, 3, 4, 5]


def test_a_cursor_with_a_zone_is_compared_by_its_instant(file):
    change(file, "insert into sales values (6, 6, '2020-01-04T13:00:00+02:00', null)")
    (first,) = read(sales(file), {})
    assert first.position == {"cursor": "2020-01-04 11:00:00"}
    assert ids(read(sales(file), first.position)) == [6]
    assert 6 in ids(read(sales(file), {"cursor": "2020-01-04T12:00:00+01:00"}))


def test_nothing_is_yielded_by_a_growing_table_that_is_empty(file):
    change(file, "delete from sales")
    assert list(read(sales(file), {})) == []


def test_rows_without_a_usable_cursor_come_every_time_and_never_become_the_position(file):
    change(
        file,
        "insert into sales values (7, 1, null, null)",
        "insert into sales values (8, 1, 'yesterday', null)",
        "insert into sales values (9, 1, '2999-01-01', null)",
        "insert into sales values (10, 1, 'infinity', null)",
        "insert into sales values (11, 1, x'ff', null)",
    )
    batches = list(read(sales(file), {}, batch_rows=1))
    assert position_after(batches, {}) == {"cursor": "2020-01-04 10:00:00"}
    assert {1, 2, 3, 4, 5, 7, 8, 9, 10} <= set(ids(batches))
    again = list(read(sales(file), position_after(batches, {})))
    assert sorted(ids(again)) == [4, 5, 7, 8, 9, 10]
    assert position_after(again, {}) == {"cursor": "2020-01-04 10:00:00"}
    assert "missing, unreadable or in the future" in again[-1].where
    for told in (batches, again):  # its cursor is no text at all, so it cannot be sent
        (bad,) = [bad for b in told if b.rejected for bad in b.rejected.to_pylist()]
        assert json.loads(bad["raw"])["id"] == "11"
        assert bad["reason"] == "sold_at: not UTF-8"


def test_rows_of_which_none_has_a_cursor_leave_a_position_that_vouches_no_more(file):
    change(file, "update sales set sold_at = null")
    (first,) = read(sales(file), {})
    assert (len(ids([first])), first.first_time) == (5, True)
    (again,) = read(sales(file), first.position)
    assert (len(ids([again])), again.first_time) == (5, False)


def test_a_cut_after_any_transaction_loses_nothing(file, monkeypatch):
    monkeypatch.setattr(relational, "RANGE_ROWS", 1)
    change(file, "insert into sales values (6, 1, null, null)")
    everything = transactions(list(read(sales(file), {}, batch_rows=1)))
    assert len(everything) > 2
    for landed in range(len(everything) + 1):
        done = [batch for part in everything[:landed] for batch in part]
        rest = list(read(sales(file), position_after(done, {}), batch_rows=1))
        assert set(ids(done)) | set(ids(rest)) == {1, 2, 3, 4, 5, 6}
        assert landed == 0 or not any(batch.first_time for batch in rest)


def test_a_cut_into_ranges_sends_every_row_once(file, monkeypatch):
    change(file, MANY.replace("'2020-02-01 00:00:00'", "datetime('2020-02-01', i || ' hours')"))
    monkeypatch.setattr(relational, "RANGE_ROWS", 100)
    for source in (sales(file), sales(file, cursor="id"), sales(file, cursor="amount_usd")):
        batches = list(read(source, {}))
        assert sorted(ids(batches)) == list(range(1, 10_000))
        assert len(transactions(batches)) <= relational.MAX_RANGES


# What is gone


def test_deletes_send_every_key_there_is_in_a_last_batch(file):
    source = sales(file, key=("id",), deletes=True)
    position = {"cursor": "2020-01-04 10:00:00"}
    change(file, MANY)

    def last_of(position):
        for batch in read(source, position, batch_rows=100):
            if batch.present_keys is not None:
                assert batch.completes
                assert batch.rows.num_rows == 0
                return batch.position, batch.present_keys.read_all()["id"].to_pylist()

    newest, keys = last_of(position)
    assert newest == {"cursor": "2020-02-01 00:00:00"}
    assert sorted(map(int, keys)) == list(range(1, 10_000))
    change(file, "delete from sales")
    assert last_of(newest) == (newest, [])


# A part again


def test_a_span_is_sent_from_its_start_to_before_its_end_and_moves_no_position(file):
    position = {"cursor": "2020-01-04 10:00:00"}
    batches = list(
        read(sales(file), position, Span("2020-01-02 10:00:00", "2020-01-04"), batch_rows=1)
    )
    assert ids(batches) == [2, 3]
    assert all(batch.position == position and not batch.first_time for batch in batches)
    assert "2020-01-02" in batches[0].where


def test_a_span_may_be_open(file):
    assert ids(read(sales(file, cursor="id"), {}, Span(end="3"))) == [1, 2]
    assert ids(read(sales(file, cursor="id"), {}, Span(start="3"))) == [3, 4, 5]


def test_a_span_before_the_first_load_leaves_a_position_that_vouches_no_more(file):
    (part,) = read(sales(file), {}, Span("2020-01-02", "2020-01-03"))
    batches = list(read(sales(file), part.position))
    assert sorted(ids(batches)) == [1, 2, 3, 4, 5]
    assert not any(batch.first_time for batch in batches)


@pytest.mark.parametrize("span", [Span("soon"), Span(end="1e")])
def test_a_span_that_is_no_value_of_the_cursor_is_said_to_be_none(file, span):
    with pytest.raises(MendableError, match="the range to load"):
        list(read(sales(file), {}, span))


def test_a_span_of_a_table_without_a_cursor_is_a_contradiction(file):
    with pytest.raises(MendableError, match="no cursor"):
        list(read(whole(file), {}, Span("2020-01-01")))


# Columns, names and values


def test_ignored_columns_stay_at_the_source_and_do_not_count_as_a_change(file):
    (first,) = read(whole(file, ignore=("note",)), {})
    assert first.rows.column_names == list(COLUMNS)
    change(file, "update sales set note = 'other'")
    (again,) = read(whole(file, ignore=("note",)), first.position)
    assert again.unchanged_rows == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ignore": ("id",), "columns": ("id",)}, "ignore id"),
        ({"ignore": ("sold_at",), "columns": ()}, "ignore sold_at"),
        ({"deletes": True}, "deletes without a key"),
        ({"overlap": "1 day", "cursor": None}, "an overlap without a cursor"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(file, changes, said):
    with pytest.raises(MendableError, match=said):
        sales(file, **changes)


@pytest.mark.parametrize(
    ("overlap", "cursor"),
    [
        *(("soon", "sold_at"), ("-1 day", "sold_at"), (3, "sold_at"), ("3", "sold_at")),
        *(("1 day", "id"), (-1, "id"), ("1 day", "note"), (1, "note")),
    ],
)
def test_an_overlap_that_does_not_fit_the_cursor_is_refused(file, overlap, cursor):
    with pytest.raises(MendableError, match="overlap"):
        list(read(sales(file, overlap=overlap, cursor=cursor), {}))


def test_an_overlap_longer_than_time_itself_reads_everything(file):
    source = sales(file, overlap="9000 years")
    assert sorted(ids(read(source, {"cursor": "2020-01-04 10:00:00"}))) == [1, 2, 3, 4, 5]


def test_a_cursor_of_a_type_without_order_is_refused(file):
    change(file, "create table blobs (id int, body blob)", "insert into blobs values (1, x'00')")
    with pytest.raises(MendableError, match="cursor body"):
        list(read(sales(file, table="blobs", columns=(), cursor="body"), {}))


def test_a_missing_column_names_what_was_expected_what_came_and_the_contract(file):
    change(file, "alter table sales rename column amount_usd to amount")
    with pytest.raises(MendableError) as caught:
        list(read(sales(file), {}))
    assert caught.value.thing == "shop.sales: column amount_usd"
    assert "amount_usd" in caught.value.expected
    assert "amount" in caught.value.arrived.split(", ")
    assert "orchestration/defs/raw/shop/defs.yaml" in caught.value.mend


@pytest.mark.parametrize(
    "name", ['x"; drop table sales--', "o'clock", "Müller ß 表", "select", "%s{}"]
)
@pytest.mark.parametrize("cursor", [True, False])
def test_any_name_is_a_name_and_never_sql(tmp_path, name, cursor):
    path, quoted = tmp_path / "odd 'name.sqlite", '"' + name.replace('"', '""') + '"'
    change(
        path,
        f"create table {quoted} ({quoted} int, other text)",
        f"insert into {quoted} values (1, 'ü'), (2, '表')",
    )
    source = sales(
        path,
        table=name,
        columns=(name,),
        key=(name,),
        deletes=cursor,
        cursor=name if cursor else None,
    )
    batches = list(read(source, {}))
    assert rows_of(batches) == [{name: "1", "other": "ü"}, {name: "2", "other": "表"}]
    if cursor:
        assert batches[-1].present_keys.read_all()[name].to_pylist() == ["1", "2"]


def test_values_that_break_their_declared_type_arrive_as_they_are(file):
    change(
        file,
        "insert into sales values ('seven', 'n/a', '2020-01-05', null)",
        "insert into sales values (9223372036854775807, 0.1e0, '2020-01-06', 1e300)",
        "insert into sales values (8, 0.30000000000000004, '2020-01-07', '')",
    )
    batches = list(read(sales(file), {"cursor": "2020-01-05"}))
    assert rows_of(batches) == [
        {"id": "seven", "amount_usd": "n/a", "sold_at": "2020-01-05", "note": None},
        {
            "id": "9223372036854775807",
            "amount_usd": "0.1",
            "sold_at": "2020-01-06",
            "note": "1.0e+300",
        },
        {"id": "8", "amount_usd": "0.30000000000000004", "sold_at": "2020-01-07", "note": ""},
    ]


def test_blobs_arrive_as_their_bytes(tmp_path):
    path = tmp_path / "blobs.sqlite"
    change(path, "create table blobs (id int, body blob)")
    change(path, "insert into blobs values (1, x'00ff27'), (2, null), (3, x''), (4, 'é')")
    (batch,) = read(sales(path, table="blobs", columns=(), cursor="id"), {})
    assert batch.rows["body"].to_pylist() == [b"\x00\xff'", None, b"", "é".encode()]


def test_a_text_that_is_not_utf_8_sets_its_row_aside_and_not_the_others(file):
    change(file, "insert into sales values (9, 1, '2020-01-04 10:00:00', cast(x'61ff53' as text))")
    for source in (sales(file, key=("id",)), whole(file, key=("id",))):
        batches = list(read(source, {}))
        assert sorted(ids(batches)) == [1, 2, 3, 4, 5]
        (bad,) = [bad for b in batches if b.rejected for bad in b.rejected.to_pylist()]
        assert bad["reason"] == "note: not UTF-8"
        assert bad[SOURCE_POSITION] == '["9"]'
        assert json.loads(bad["raw"]) == {
            "id": "9",
            "amount_usd": "1",
            "sold_at": "2020-01-04 10:00:00",
            "note": r"a\xFFS",
        }


def test_reading_changes_nothing_in_the_source(file):
    before = file.read_bytes()
    list(read(sales(file), {}))
    list(read(whole(file), {}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_writer_is_not_kept_out_while_rows_land(file):
    change(file, MANY)
    batches = read(sales(file), {}, batch_rows=100)
    first = next(batches)
    change(file, "insert into sales values (10000, 1, '2020-03-01', null)")
    assert sorted(ids([first, *batches])) == list(range(1, 10_000))


# Errors


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
    change(file, MANY)
    content = bytearray(file.read_bytes())
    content[4096 * 5 : 4096 * 9] = b"\xff" * 4096 * 4
    file.write_bytes(content)
    for source in (sales(file), whole(file)):
        with pytest.raises(MendableError) as caught:
            list(read(source, {}))
        assert "private" not in str(caught.value)


def test_a_file_that_another_program_keeps_locked_is_worth_another_try(file, monkeypatch):
    monkeypatch.setattr(relational_dialects, "TIMEOUT_SECONDS", 0)
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


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "mariadb"])
def test_a_server_that_does_not_answer_is_worth_another_try_and_its_password_stays_secret(kind):
    port = closed_port()
    source = sales(None, url=f"{kind}://clerk:s3cret@127.0.0.1:{port}/shop")
    with pytest.raises(SourceUnavailableError, match="nothing listens there") as caught:
        list(read(source, {}))
    assert f"127.0.0.1:{port}" in caught.value.thing
    assert "WATERSHED_SHOP_URL" in caught.value.mend
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + repr(source)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_server_that_accepts_and_says_nothing_is_not_waited_for_for_ever(kind, monkeypatch):
    monkeypatch.setattr(relational_dialects, "TIMEOUT_SECONDS", 2)  # the least PostgreSQL's takes
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{kind}://clerk:s3cret@127.0.0.1:{silent.getsockname()[1]}/shop"
        with pytest.raises(SourceUnavailableError, match="no answer within"):
            list(read(sales(None, url=url), {}))


def test_a_url_of_another_kind_names_its_setting_and_not_its_content():
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_URL") as caught:
        list(read(sales(None, url="oracle://clerk:s3cret@host/shop"), {}))
    assert "s3cret" not in str(caught.value)


def test_an_error_quotes_no_value(file):
    position = {"cursor": "private"}
    with pytest.raises(MendableError, match="withheld") as caught:
        list(read(sales(file, cursor="id"), position))
    assert "private" not in "".join(traceback.format_exception(caught.value))


# All of it at once

OVERLAP = 3
WRITE = st.one_of(
    # A row's id, and how far its time lies behind the newest (0: tied with it) or ahead of it.
    st.tuples(st.just("write"), st.integers(0, 5), st.integers(-OVERLAP, 4 * OVERLAP)),
    st.tuples(st.just("blank"), st.integers(0, 5), st.just(0)),
)
# Batches of so many rows, and the loader dies after so many of them.
READ = st.tuples(st.just("read"), st.integers(1, 3), st.integers(0, 6))
ROUND = st.tuples(st.lists(WRITE, min_size=4, max_size=8), READ).map(
    lambda round: [*round[0], round[1]]
)


@settings(max_examples=30, deadline=None)
@given(st.lists(ROUND, min_size=1, max_size=3))
def test_the_last_version_of_every_row_lands_whatever_happens_in_between(tmp_path_factory, rounds):
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    change(path, "create table sales (id int primary key, version int, at int)")
    source = sales(path, columns=("id", "version", "at"), cursor="at", overlap=OVERLAP)
    landed: set[tuple[str, ...]] = set()
    position: dict = {}
    newest = 100
    steps = [*(step for steps in rounds for step in steps), ("read", 2, 10**9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relational, "RANGE_ROWS", 1)
        for version, (step, first, second) in enumerate(steps):
            if step == "read":
                arrived, known = [], position
                batches = islice(read(source, position, batch_rows=first), second)
                for batch in batches:
                    assert not (batch.first_time and known), "it vouched for rows sent before"
                    arrived += [tuple(row.values()) for row in batch.rows.to_pylist()]
                    if batch.completes:  # what the loader had not committed dies with it
                        landed.update(arrived)
                        position, arrived = batch.position, []
            else:
                newest = max(newest, newest + second)
                at = "null" if step == "blank" else newest + min(second, 0)
                change(path, f"insert or replace into sales values ({first}, {version}, {at})")
    with closing(sqlite3.connect(path)) as database:
        texts = "select cast(id as text), cast(version as text), cast(at as text) from sales"
        assert set(database.execute(texts)) <= landed
