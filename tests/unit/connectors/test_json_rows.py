"""JSON to columns: what was written is what arrives, to the last digit; what is no row says why."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.connectors.json_rows import MAX_FIELDS, rows_of


class Written(str):
    """A number as it is written."""


def dumps(value, space=""):
    """JSON with numbers as they are written, and white space where JSON allows it."""
    if isinstance(value, Written):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k)}{space}:{space}{dumps(v, space)}" for k, v in value.items())
        return "{" + space + f"{space},{space}".join(pairs) + space + "}"
    if isinstance(value, list):
        return "[" + f",{space}".join(dumps(item, space) for item in value) + "]"
    return json.dumps(value, ensure_ascii=len(space) > 1)


def exactly(text):
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def all_rows(values):
    table, reasons = rows_of(values)
    assert not reasons
    return table.to_pylist() or [{}] * len(values)


digits = st.text("0123456789", min_size=1, max_size=25)
numbers = st.builds(
    lambda sign, whole, part, power: Written(
        f"{sign}{int(whole)}{'.' + part if part else ''}{power}"
    ),
    st.sampled_from(["", "-"]),
    digits,
    digits | st.just(""),
    st.sampled_from(["", "", "", "e5", "E+20", "e-7", "e-320", "e400"]),
) | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: Written(repr(number)))
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | numbers | texts
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
objects = st.dictionaries(names | st.sampled_from(["a", "A", "b"]), nested, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, min_size=1, max_size=6), st.sampled_from(["", " ", " \n\t"]))
def test_every_value_arrives_as_it_was_written(written, space):
    rows = all_rows([dumps(fields, space).encode() for fields in written])
    assert len(rows) == len(written)
    for fields, row in zip(written, rows, strict=True):
        assert {name for name, value in row.items() if value is not None} == {
            name for name, value in fields.items() if value is not None
        }
        for name, value in fields.items():
            arrived = row.get(name)
            if value is None or (isinstance(value, str) and not isinstance(value, Written)):
                assert arrived == value
            else:
                assert exactly(arrived) == exactly(dumps(value))


@pytest.mark.parametrize(
    "number",
    ["1.10", "100000000000000000000000", "9223372036854775808", "0.1234567890123456789", "-0.30",
     "123456789012345678.5", "1e400", "1.2345678901e-310", "12345678901234567e3"],
)  # fmt: skip
def test_a_number_keeps_its_value_beyond_what_a_double_holds(number):
    for text in (f'{{"n": {number}}}', f'{{"n":[{number}]}}'):
        (row,) = all_rows([text.encode()])
        value = exactly(row["n"])
        assert (value[0] if isinstance(value, list) else value) == Decimal(number)


def test_doubles_that_print_as_themselves_and_long_integers_need_no_second_reading(monkeypatch):
    from orchestration.connectors import json_rows

    monkeypatch.setattr(json_rows, "_fields", lambda text: pytest.fail("read a second time"))
    values = [
        b'{"v":%r,"id":17%018d,"at":"2026-01-01 00:00:00.123456"}' % (n / 7, n)
        for n in range(1, 999)
    ]
    assert len(all_rows(values)) == 998


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not JSON"),
        (b" ", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}{"a":2}', "not JSON"),
        (b'{"a":1} x', "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'{"a":"line\nbreak"}', "not JSON"),
        (b'{"a":"\\ud800"}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[1]", "JSON, but not an object"),
        (b'"{}"', "JSON, but not an object"),
        (b"null", "JSON, but not an object"),
        (b"17", "JSON, but not an object"),
        (b'{"a":1,"a":1}', "a field twice"),
        (b'{"a":1,"\\u0061":2}', "a field twice"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'{"":1}', "a field without a name"),
        (b'{"a\\u0000":1}', "a field without a name"),
        (b'{"a":%s1.00000000000000001%s}' % (b"[" * 50_000, b"]" * 50_000), "nested too deeply"),
    ],
)
def test_what_is_no_row_is_set_aside_with_its_reason_and_the_others_arrive(value, reason):
    table, reasons = rows_of([b'{"a":"before"}', value, b'{"a":"behind","b":1}'])
    assert list(reasons) == [1]
    assert reasons[1].startswith(reason)
    assert table.to_pylist() == [{"a": "before", "b": None}, {"a": "behind", "b": "1"}]


def test_deep_nesting_and_long_texts_arrive_whole():
    deep, long = b"[" * 100_000 + b"]" * 100_000, b"x" * 3_000_000
    (row,) = all_rows([b'{"deep":%s,"long":"%s"}' % (deep, long)])
    assert (row["deep"].encode(), row["long"].encode()) == (deep, long)


def test_fields_that_differ_only_in_case_stay_apart():
    assert all_rows([b'{"Id":1,"id":2}', b'{"ID":3}']) == [
        {"Id": "1", "id": "2", "ID": None},
        {"Id": None, "id": None, "ID": "3"},
    ]


def test_names_that_nobody_shares_cannot_crowd_out_the_rows_that_others_share():
    junk = [b'{"%d":1}' % number for number in range(5 * MAX_FIELDS)]
    wide = b"{%s}" % b",".join(b'"w%d":1' % number for number in range(10_000))
    good = [b'{"id":%d,"name":"n"}' % number for number in range(100)]
    table, reasons = rows_of([wide, *junk[:2000], *good, b'{"id":7}', *junk[2000:]])
    assert table.num_columns <= MAX_FIELDS
    assert sum(value is not None for value in table["id"].to_pylist()) == 101
    assert len(reasons) + table.num_rows == 1 + len(junk) + 101
    assert 0 in reasons


def test_no_values_are_no_rows():
    assert rows_of([])[0].num_rows == 0
    assert rows_of([b"{}"])[1] == {}
