"""Landing: nothing lost, nothing twice, every bad row with its reasons."""

from __future__ import annotations

import datetime as dt

import duckdb
import pandera.polars as pa
import polars as pl
import pyarrow as arrow
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestration.connectors import Batch
from orchestration.errors import MendableError
from orchestration.landing.checking import check
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame

CONTRACT = pa.DataFrameSchema(
    {
        "id": pa.Column(pl.Int64, pa.Check.gt(0)),
        "amount_usd": pa.Column(pl.Decimal(12, 2), pa.Check.ge(0)),
        "sold_at": pa.Column(pl.Datetime("us")),
        "note": pa.Column(pl.String, nullable=True),
    },
    name="shop.sales",
    metadata={"version": 3},
)
GROWING = RawTable("shop__sales", CONTRACT, cursor="sold_at")
REPLACED = RawTable("shop__sales", CONTRACT)


def row(number, amount="1.50", note=None, day=None):
    return {
        "id": number,
        "amount_usd": amount,
        "sold_at": f"2020-01-{day or 1:02d} 00:00:00",
        "note": note,
    }


def batch(rows, **position):
    table = arrow.Table.from_pylist(
        rows,
        schema=arrow.schema(
            [("id", arrow.int64())]
            + [(name, arrow.string()) for name in ("amount_usd", "sold_at", "note")]
        ),
    )
    return Batch(rows=table, position=position)


def reader(*batches):
    return lambda position: iter(batches)


def frame_of(settings, query):
    with connect(settings, read_only=True) as connection:
        return read_frame(connection, query)


def rows_of(settings, query):
    return frame_of(settings, query).rows()


def test_rows_land_with_the_contracts_types_and_their_batch(settings):
    landed = land(settings, GROWING, reader(batch([row(1, "19.99")], cursor="a")))
    assert (landed.rows_in, landed.rows_kept, landed.rows_total) == (1, 1, 1)
    frame = frame_of(settings, "from raw.shop__sales")
    assert frame["amount_usd"].dtype == pl.Decimal(12, 2)
    assert frame["sold_at"][0] == dt.datetime(2020, 1, 1)
    assert frame["_source_position"][0] == '{"cursor": "a"}'
    assert rows_of(settings, "select table_name, contract_version from landing.ledger") == [
        ("raw.shop__sales", "3")
    ]


def test_a_bad_row_is_quarantined_with_every_reason_and_the_good_rows_land(settings):
    rows = [row(1), row(-2, "-1"), row(3, "abc"), {**row(4), "sold_at": None}]
    landed = land(settings, GROWING, reader(batch(rows, cursor="a")))
    assert (landed.rows_in, landed.rows_kept, landed.rows_quarantined) == (4, 1, 3)
    assert rows_of(settings, "select id from raw.shop__sales") == [(1,)]
    quarantined = rows_of(
        settings,
        "select json_extract_string(payload, '$.id'), reason from quarantine.shop__sales"
        " order by all",
    )
    assert quarantined == [
        ("-2", "amount_usd: greater_than_or_equal_to(0); id: greater_than(0)"),
        ("3", "amount_usd: not a DECIMAL(12,2)"),
        ("4", "sold_at: not_nullable"),
    ]


def test_landing_resumes_at_the_position_of_the_last_commit(settings):
    seen = []

    def read(position):
        seen.append(position)
        yield batch([row(1)], cursor="1")
        yield batch([row(2, day=2)], cursor="2")

    land(settings, GROWING, read)
    land(settings, GROWING, read)
    assert seen == [{}, {"cursor": "2"}]


def test_a_source_that_breaks_off_keeps_the_batches_committed_before(settings):
    def read(position):
        yield batch([row(1)], cursor="1")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        land(settings, GROWING, read)
    assert rows_of(settings, "select id from raw.shop__sales") == [(1,)]
    assert rows_of(settings, "select source_position from landing.positions") == [
        ('{"cursor": "1"}',)
    ]


def test_a_replaced_table_is_as_it_was_when_its_load_breaks_off(settings):
    land(settings, REPLACED, reader(batch([row(1), row(2)], fingerprint="a")))

    def read(position):
        yield batch([row(9)], fingerprint="b")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        land(settings, REPLACED, read)
    assert rows_of(settings, "select id from raw.shop__sales order by id") == [(1,), (2,)]


def test_an_unchanged_table_counts_its_rows_as_known_and_keeps_its_data_version(settings):
    first = land(settings, REPLACED, reader(batch([row(1), row(2)], fingerprint="a")))
    same = Batch(rows=batch([]).rows, position={"fingerprint": "a"}, unchanged_rows=2)
    second = land(settings, REPLACED, reader(same))
    assert (second.rows_in, second.rows_kept, second.rows_deduplicated) == (2, 0, 2)
    assert second.rows_total == 2
    assert first.data_version == second.data_version


def test_asking_a_source_that_has_nothing_new_leaves_a_line_in_the_ledger(settings):
    first = land(settings, GROWING, reader(batch([row(1)], cursor="1")))
    second = land(settings, GROWING, reader())
    assert (second.rows_in, second.rows_total) == (0, 1)
    assert first.data_version == second.data_version
    assert rows_of(settings, "select rows_in from landing.ledger order by loaded_at") == [
        (1,),
        (0,),
    ]


def test_a_replaced_table_follows_rows_that_changed_and_went(settings):
    first = land(settings, REPLACED, reader(batch([row(1), row(2)], fingerprint="a")))
    second = land(settings, REPLACED, reader(batch([row(2, note="new")], fingerprint="b")))
    assert rows_of(settings, "select id, note from raw.shop__sales") == [(2, "new")]
    assert first.data_version != second.data_version


def test_a_record_that_changed_at_the_source_lands_as_a_new_version(settings):
    land(settings, GROWING, reader(batch([row(1)], cursor="1")))
    landed = land(settings, GROWING, reader(batch([row(1), row(1, note="x")], cursor="1")))
    assert (landed.rows_kept, landed.rows_deduplicated) == (1, 1)


def test_a_second_loader_that_moved_the_position_is_fenced_off(settings):
    def read(position):
        land(settings, GROWING, reader(batch([row(1)], cursor="1")))
        yield batch([row(1)], cursor="1")

    with pytest.raises(MendableError, match="another load has moved it"):
        land(settings, GROWING, read)
    assert rows_of(settings, "select id from raw.shop__sales") == [(1,)]


def test_a_missing_column_is_named_and_nothing_lands(settings):
    table = batch([row(1)]).rows.drop_columns(["note"])
    with pytest.raises(MendableError, match=r"shop.sales: column note"):
        land(settings, GROWING, reader(Batch(rows=table, position={"cursor": "1"})))
    assert rows_of(settings, "from raw.shop__sales") == []
    assert rows_of(settings, "from landing.ledger") == []


ROWS = st.lists(
    st.builds(
        row,
        st.integers(-2, 5),
        amount=st.sampled_from(["1.50", "-1", "abc", "9999999999.99", "99999999999.99"]),
        note=st.sampled_from([None, "", "é", "x\ny"]),
        day=st.integers(1, 5),
    ),
    max_size=8,
)


VALID_AMOUNTS = ("1.50", "9999999999.99")


@hypothesis_settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_a_row_is_good_exactly_when_all_its_values_hold_the_contract(rows):
    with duckdb.connect() as connection:
        checked = check(connection, CONTRACT, batch(rows).rows)
    good = [r["id"] for r in rows if r["id"] > 0 and r["amount_usd"] in VALID_AMOUNTS]
    assert checked.good["id"].to_list() == good
    assert checked.bad.height == len(rows) - len(good)
    assert all(checked.bad["reason"])


@hypothesis_settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(first=ROWS, second=ROWS)
def test_rows_in_is_kept_plus_quarantined_plus_deduplicated_and_replays_change_nothing(
    tmp_path_factory, first, second
):
    settings = load_settings(data_dir=tmp_path_factory.mktemp("lake"))
    batches = [batch(rows, cursor=str(number)) for number, rows in enumerate((first, second))]
    landed = land(settings, GROWING, reader(*batches))
    assert landed.rows_in == len(first) + len(second)
    assert landed.rows_in == (landed.rows_kept + landed.rows_quarantined + landed.rows_deduplicated)
    good = {
        tuple(r.values())
        for r in first + second
        if r["id"] > 0 and r["amount_usd"] in VALID_AMOUNTS
    }
    assert landed.rows_total == len(good)

    again = land(settings, GROWING, reader(*batches))
    assert (again.rows_kept, again.rows_quarantined) == (0, 0)
    assert (again.rows_total, again.data_version) == (landed.rows_total, landed.data_version)
    assert frame_of(settings, "from quarantine.shop__sales").height == landed.rows_quarantined
