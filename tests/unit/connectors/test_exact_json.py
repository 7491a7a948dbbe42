"""JSON without loss: what orjson would round, drop or refuse is kept, or told apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.connectors.exact_json import dumps, parse, raw, table, unfit


def column(text):
    """The column `x` of records whose values of it are written so."""
    records, _ = parse(b"[" + b",".join(b'{"x":' + value + b"}" for value in text) + b"]")
    return table(records)["x"]


@pytest.mark.parametrize(
    "number",
    [
        "100000000000000000000000",
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
        "-1e400",
        "1e-400",
        "1E-400",
        "12345678901234.567",
        "0.1234567890123456789",
        "1" + "0" * 5000,
        "0." + "1" * 5000,
        "1e99999999999999999999",
        "1e-99999999999999999999",
    ],
)
@pytest.mark.parametrize("space", ["", " "])
def test_a_number_that_no_double_holds_arrives_in_its_own_words(number, space):
    (record,), _ = parse(f'[{{"x":{space}{number},"y":{{"z":[{number}]}}}}]'.encode())
    assert unfit(record) is None
    assert table([record]).to_pylist() == [{"x": number, "y": f'{{"z":[{number}]}}'}]
    assert json.loads(dumps(record), parse_float=str, parse_int=str)["x"] == number


@pytest.mark.parametrize(
    "number", ["9223372036854775807", "-9223372036854775808", "0.1", "1.50", "0.30000000000000004"]
)
def test_other_numbers_are_numbers(number):
    assert column([number.encode()]).to_pylist() == [
        float(number) if "." in number else int(number)
    ]


@pytest.mark.parametrize(
    ("values", "arrived"),
    [
        ([b"1", b"2.5"], [1.0, 2.5]),
        ([b"9007199254740993", b"1.5"], ["9007199254740993", "1.5"]),
        ([b"1.5", b"true"], ["1.5", "true"]),
        ([b"true", b"1"], ["true", "1"]),
        ([b'"a"', b"null", b'{"k":["\xc3\xa9"]}'], ["a", None, '{"k":["é"]}']),
        ([b"[]", b"[1]"], ["[]", "[1]"]),
        ([b"18446744073709551615", b"1"], ["18446744073709551615", "1"]),
    ],
)
def test_values_of_several_types_become_text_and_whole_ones_with_fractions_doubles(values, arrived):
    assert column(values).to_pylist() == arrived


def test_a_column_has_a_value_for_every_record():
    assert table([{"a": 1}, {"b": 2}, {}], ignore=["c"]).to_pylist() == [
        {"a": 1, "b": None},
        {"a": None, "b": 2},
        {"a": None, "b": None},
    ]
    assert table([{"a": 1, "c": 2}], ignore=["c"]).column_names == ["a"]


@pytest.mark.parametrize(
    ("record", "reason", "bytes_kept"),
    [
        (b'{"a":1,"a":2}', "the same key twice", b'{"a":1,"a":2}'),
        (b'{"a" : 1, "a":1}', "the same key twice", b'{"a":1,"a":1}'),
        (b'{"x":[{"a":1,"\\u0061":2}]}', "the same key twice", b'{"x":[{"a":1,"a":2}]}'),
        (b'{"a":1,"a":1,"b":"\\u003a"}', "the same key twice", b'{"a":1,"a":1,"b":":"}'),
        (b'{"a":NaN}', "NaN or Infinity, which JSON has not", b'{"a":NaN}'),
        (b'{"a":-Infinity}', "NaN or Infinity, which JSON has not", b'{"a":-Infinity}'),
        (b'{"a":"\xff\xfe"}', "a text that is not UTF-8", b'{"a":"\xff\xfe"}'),
        (b'{"\xff":1}', "a text that is not UTF-8", b'{"\xff":1}'),
        (b'{"a":"\\ud800"}', "a text that is not UTF-8", b'{"a":"\\ud800"}'),
        (b'"a"', "not an object but a text", b'"a"'),
        (b"false", "not an object but a boolean", b"false"),
        (b"1.5", "not an object but a number", b"1.5"),
        (b"null", "not an object but null", b"null"),
    ],
)
def test_what_is_unfit_is_told_with_its_reason_and_bytes(record, reason, bytes_kept):
    (good, bad), fit = parse(b'[{"a":1},' + record + b"]")
    assert unfit(good) is None
    assert unfit(bad) == reason
    assert raw(bad) == bytes_kept
    assert raw(good) == b'{"a":1}'
    assert fit is reason.startswith("not an object")


def test_nesting_is_unfit_beyond_what_can_be_written_again_and_no_json_far_beyond():
    deep = b'{"x":' + b"[" * 300 + b"]" * 300 + b"}"
    (record, good), fit = parse(b"[" + deep + b',{"x":1}]')
    assert (unfit(record), raw(record), unfit(good), fit) == (
        "nested too deeply",
        deep,
        None,
        False,
    )
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('[{"x":"é"}]'.encode("utf-8-sig"), ""),
        ('[{"x":"é"}]'.encode("utf-16"), ""),
        ('[{"x":"é"}]'.encode("utf-32-le"), ""),
        ('[{"x":"é"}]'.encode("latin-1"), 'application/json; charset="ISO-8859-1"'),
        ('[{"x":"é"}]'.encode(), "application/json; charset=no-such-thing"),
        ('[{"x":"é"}]'.encode(), "application/json; charset=latin-1"),
        (b'\n[ {"x" : "\\u00e9"} ]\n', "text/html"),
    ],
)
def test_a_text_may_be_encoded_in_other_ways(body, content_type):
    records, _ = parse(body, content_type)
    assert [unfit(record) for record in records] == [None]
    assert table(records).to_pylist() == [{"x": "é"}]


def test_a_bare_line_break_in_a_text_is_kept():
    assert column([b'"a\nb"']).to_pylist() == ["a\nb"]


@pytest.mark.parametrize(
    "body", [b"", b"<html>Ann</html>", b'[{"Ann":', b"[1,]", b"01", b"{'a':1}", b"\xff\xfe\x00"]
)
def test_what_is_no_json_is_told_without_quoting_it(body):
    with pytest.raises(ValueError, match="not JSON") as caught:
        parse(body)
    assert "Ann" not in str(caught.value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab:\\"é', max_size=3), inner),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text("abc", max_size=2), values, max_size=4), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_whatever_json_holds_is_read_as_the_standard_library_does(records, ascii_only, compact):
    separators = (",", ":") if compact else None
    body = json.dumps(records, ensure_ascii=ascii_only, separators=separators).encode()
    document, _ = parse(body)
    assert [unfit(record) for record in document] == [None] * len(records)
    assert json.loads(b"[" + b",".join(map(dumps, document)) + b"]") == records
    assert table(document).num_rows == (len(records) if any(records) else 0)
