"""Events that are read straight into their columns' types land, and are set aside, as those that are read as text."""

from __future__ import annotations

import dataclasses

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.connectors.event_log import Event, in_columns
from orchestration.connectors.event_stream import BatchMaker, EventTopic
from orchestration.connectors.json_rows import typed_rows_of
from orchestration.contracts.raw import build_contract
from orchestration.landing.checking import check, sql_types

CONTRACT = build_contract(
    "shop.orders",
    {
        "number": {"dtype": "Int64", "nullable": True},
        "count": {"dtype": "Int32", "nullable": True, "greater_than": -100},
        "amount": {"dtype": "Decimal(12, 2)", "nullable": True, "less_than": 10_000},
        "rate": {"dtype": "Float64", "nullable": True},
        "is_gift": {"dtype": "Boolean", "nullable": True},
        "note": {"dtype": "String", "nullable": True},
        "at": {"dtype": "Datetime", "nullable": True},
    },
)
SOURCE = EventTopic(
    "log:///nowhere", "orders", "shop", "orders", "", columns=tuple(CONTRACT.columns)
)
TYPED = dataclasses.replace(SOURCE, types=sql_types(CONTRACT))

integers = st.integers(-(10**4), 10**4).map(str)
odd = st.sampled_from(
    [
        *(
            "1.0",
            "1e2",
            "-0",
            "-0.0",
            "9223372036854775808",
            "12.345",
            "1.5e-1",
            "1e400",
            "NaN",
            "01",
        ),
        *(
            '"5"',
            '" 12.5"',
            '"a\\u0000b"',
            '"\\ud800"',
            '"x\ty"',
            '"2018-01-01T10:00:00+02:00"',
            '""',
        ),
        *(
            '1,"number":2',
            "0.1000000000000000055",
            "123456789.123456789123",
            "true",
            "[1]",
            '{"a":1}',
            "",
            "nul",
        ),
    ]
)
usual = {
    "number": integers,
    "count": integers,
    "amount": st.decimals(-10_000, 10_000, places=2).map(str),
    "rate": st.floats(allow_nan=False, allow_infinity=False).map(repr),
    "is_gift": st.sampled_from(["true", "false"]),
    "note": st.sampled_from(['"open"', '"ä\\n\\u00e9"', '""']),
    "at": st.sampled_from(['"2018-01-01T10:00:00"', '"2018-01-01 10:00:00.123456"']),
}


@st.composite
def events(draw):
    """Objects as they usually come, and in half of the lists one with a value, a field or an end that is not usual."""
    kinds = st.fixed_dictionaries({}, optional={n: usual[n] | st.just("null") for n in usual})
    fields, ends = draw(st.lists(kinds, min_size=1, max_size=12)), {}
    if draw(st.booleans()):
        at = draw(st.integers(0, len(fields) - 1))
        fields[at] = fields[at] | {draw(st.sampled_from([*usual, "new"])): draw(odd)}
        ends[at] = draw(st.sampled_from(["", "", "", " ", "\n", "{}", "x", "\0", "\n{}"]))
    return [
        ("{" + ",".join(f'"{n}":{v}' for n, v in of_one.items()) + "}" + ends.get(at, "")).encode()
        for at, of_one in enumerate(fields)
    ]


def checked(source, values):
    table = in_columns([Event("orders", 0, n, None, None, value) for n, value in enumerate(values)])
    batch = BatchMaker(source)([table], {})
    with duckdb.connect() as connection:
        found = check(connection, CONTRACT, batch.rows, drift="quarantine", as_text=batch.as_text)
    return batch, found


@settings(deadline=None, max_examples=50)
@given(events())
def test_whatever_comes_lands_the_same_however_it_was_read(values):
    (slow, as_text), (fast, typed) = checked(SOURCE, values), checked(TYPED, values)
    assert typed.good.to_pylist() == as_text.good.to_pylist()
    assert typed.bad.to_pylist() == as_text.bad.to_pylist()
    assert (slow.rejected and slow.rejected.to_pylist()) == (
        fast.rejected and fast.rejected.to_pylist()
    )


USUAL = (
    b'{"number":1,"count":2,"amount":3.25,"rate":0.5,"is_gift":true,"note":"a","at":"2018-01-01"}'
)


def test_a_row_of_usual_events_that_breaks_the_contract_is_set_aside_as_it_came():
    values = [USUAL, USUAL.replace(b"3.25", b"10000.50"), USUAL]
    (_, as_text), (fast, typed) = checked(SOURCE, values), checked(TYPED, values)
    assert fast.as_text is not None
    assert typed.good.num_rows == 2
    (bad,) = typed.bad.to_pylist()
    assert '"amount":"10000.5"' in bad["payload"]
    assert bad["_source_position"] == "orders/0/1"
    assert typed.bad.to_pylist() == as_text.bad.to_pylist()


def test_usual_events_are_read_by_the_fast_way():
    rows = typed_rows_of(pa.array([USUAL] * 3), TYPED.types)
    assert [str(kind) for kind in rows.schema.types] == [
        *("int64", "int32", "decimal128(12, 2)", "double", "bool", "string", "string")
    ]


@pytest.mark.parametrize(
    "other",
    [
        b'{"number":1.0}', b'{"number":"1"}', b'{"new":1}', b'{"number":1,"number":1}', b"[1]", b"",
        b'{"number":1}\n{"number":2}', b'{"number":1}{"number":2}', b'{"note":["a"]}', b'{"rate":NaN}',
        b'{"amount":3.255}', b'{"note":"\xff"}', b'{"note":"a', b' {"number":1}',
    ],
)  # fmt: skip
def test_one_event_that_is_not_usual_is_left_to_the_exact_way(other):
    assert typed_rows_of(pa.array([USUAL, other, USUAL]), TYPED.types) is None
    assert typed_rows_of(pa.array([USUAL, b"", other]), TYPED.types) is None
