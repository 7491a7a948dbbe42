"""JSON objects to Arrow columns, in bulk and without loss; what is no such object gets its reason.

Every value arrives as text: a string as it is, a number with its exact value (1.10 may read 1.1),
`true` and `false`, objects and arrays as JSON. A missing field and `null` are null. DuckDB parses; an
object with a number that it would round is read by Python instead. Where it is known what comes, and
just that comes, Arrow reads it three times as fast, and numbers arrive as numbers.

Not a row: what is not UTF-8, not JSON, not an object, or has a field twice, one without a name, or one
that is not among the `MAX_FIELDS` most frequent.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestration.duckdb_session import literal, open_session

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

MAX_FIELDS = 1_000

_MEMORY = "1GB"
_PIECE_ROWS = 20_000
_SAMPLE_ROWS = 1_000
_BLOCK_BYTES = 1 << 20
_LONG_NUMBER = 40
_JSON = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
_SPACE = re.compile(r"[ \t\r\n]*")
_KEYS = """
    (select text, json_keys(text) as keys
    from (select case when json_valid(text) then text end as text from arrived))
    """
_BEYOND = f"a field without a name, or beyond the {MAX_FIELDS:,} most frequent"


def rows_of(values: Sequence[bytes] | pa.Array) -> tuple[pa.Table, dict[int, str]]:
    """The rows of JSON objects.

    Args:
        values: an object each; none of them None.

    Returns:
        A row for each value that is one, in their order (none if no value has a field); a column
        without a value has the null type. And the reasons for the others, by number.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    texts, reasons = texts_of(pa.array(values, pa.binary()))
    with open_session(memory_limit=_MEMORY) as connection:
        names, unfit = _columns(connection, texts)
        reasons = unfit | reasons
        exact = {}
        for number in _doubtful(texts):
            if number not in reasons:
                try:
                    exact[number] = _fields(texts[number].as_py())
                except RecursionError:
                    reasons[number] = "nested too deeply for its numbers to be read"
        kept = np.delete(np.arange(len(texts)), list(reasons))
        if not names:
            return pa.table({}), reasons
        _register(connection, texts.take(kept))
        spec = literal(json.dumps(dict.fromkeys(names, "VARCHAR")))
        parsed = connection.sql(f"select from_json(text, {spec}) as row from arrived")
        rows = pa.concat_arrays(
            parsed.to_arrow_table()["row"].chunks or [pa.nulls(0, pa.struct([]))]
        )
    columns = dict(zip(names, rows.flatten(), strict=True))
    if exact:
        mask = np.isin(kept, list(exact))
        for name in names:
            read = pa.array([fields.get(name) for fields in exact.values()], pa.string())
            columns[name] = pc.replace_with_mask(columns[name], mask, read)
    empty = pa.nulls(len(kept))
    return pa.table(
        {n: column if column.null_count < len(kept) else empty for n, column in columns.items()}
    ), reasons


def typed_rows_of(values: pa.Array, types: Mapping[str, str]) -> pa.Table | None:
    """The rows of JSON objects that are flat and hold only what is expected; None if one is not so.

    Args:
        values: an object each, as bytes; none null.
        types: the expected fields and the SQL types that their values are for.

    Returns:
        A row for each value, in their order, and a column for each field: of its type where that is a
        number or a truth value, and holds every value as it was written; otherwise text, from text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json

    texts, unfit = texts_of(values)
    if unfit or not types or not len(texts) or not pc.all(pc.starts_with(texts, "{")).as_py():
        return None
    # A line of its own for each, so that there are as many rows as values only if each is one.
    every = pa.ListArray.from_arrays([0, len(texts)], texts)
    lines = pc.binary_join(every, "\n")[0].as_buffer().to_pybytes()
    if lines.count(b"\n") >= len(texts) or b"\r" in lines:
        return None
    schema = pa.schema({name: _arrow_type(kind) for name, kind in types.items()})
    try:
        rows = pyarrow.json.read_json(
            pa.BufferReader(lines),
            parse_options=pyarrow.json.ParseOptions(schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid:
        return None
    floats = [column for column in rows.columns if pa.types.is_floating(column.type)]
    if len(rows) != len(texts) or not all(
        pc.all(pc.is_finite(column)).as_py() is not False for column in floats
    ):
        return None
    return rows


def _arrow_type(kind: str) -> pa.DataType:
    """What Arrow reads without loss into a column of a SQL type; text is what it leaves as it is."""
    import pyarrow as pa

    if kind.startswith("DECIMAL"):
        return pa.decimal128(*map(int, re.findall(r"\d+", kind)))
    numbers = {"BIGINT": pa.int64(), "INTEGER": pa.int32(), "DOUBLE": pa.float64()}
    return numbers.get(kind, pa.bool_() if kind == "BOOLEAN" else pa.string())


def texts_of(values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Bytes as text, null where they are not UTF-8, and the reason for each of those."""
    import pyarrow as pa

    try:
        return values.cast(pa.string()), {}
    except pa.ArrowInvalid:
        texts, reasons = values.to_pylist(), {}
        for number, value in enumerate(texts):
            try:
                texts[number] = value if value is None else value.decode()
            except UnicodeDecodeError:
                texts[number], reasons[number] = None, "not UTF-8"
        return pa.array(texts, pa.string()), reasons


def _register(connection: duckdb.DuckDBPyConnection, texts: pa.Array) -> None:
    """Make texts the table `arrived`, in pieces for DuckDB's threads."""
    import pyarrow as pa

    schema = pa.schema({"text": pa.string()})
    pieces = pa.record_batch([texts], schema)
    starts = range(0, len(texts), _PIECE_ROWS)
    table = pa.Table.from_batches([pieces.slice(start, _PIECE_ROWS) for start in starts], schema)
    connection.register("arrived", table)


def _columns(
    connection: duckdb.DuckDBPyConnection, texts: pa.Array
) -> tuple[list[str], dict[int, str]]:
    """The names of all fields, and why a value, by its number, is no row."""
    import numpy as np
    import pyarrow.compute as pc

    _register(connection, texts[:_SAMPLE_ROWS])
    (usual,) = connection.execute(
        f"select mode(keys) from {_KEYS} where len(keys) > 0"
    ).fetchone() or [None]
    if not usual or not _can_be_columns(usual) or len(set(usual)) < len(usual):
        usual = []
    _register(connection, texts)
    same = f"keys = [{', '.join(map(literal, usual))}]" if usual else "false"
    judged = connection.sql(
        f"""
        select
            case
                when {same} then null
                when keys is null then 'not JSON'
                when len(keys) = 0 and json_type(text) <> 'OBJECT' then 'JSON, but not an object'
                when len(keys) <> list_unique(keys) then 'a field twice'
            end as reason,
            case when reason is null and not ({same}) then keys end as keys
        from {_KEYS}
        """
    ).to_arrow_table()
    bad = np.flatnonzero(judged["reason"].is_valid())
    reasons = dict(zip(bad.tolist(), judged["reason"].take(bad).to_pylist(), strict=True))
    names = list(dict.fromkeys([*usual, *pc.list_flatten(judged["keys"]).unique().to_pylist()]))
    if not _can_be_columns(names):
        others = {n: keys for n, keys in enumerate(judged["keys"].to_pylist()) if keys is not None}
        fit = [keys for keys in others.values() if _can_be_columns(keys)]
        counts = Counter(key for keys in fit for key in keys if key not in usual)
        names = usual + [name for name, _ in counts.most_common(MAX_FIELDS - len(usual))]
        reasons |= {n: _BEYOND for n, keys in others.items() if not set(names).issuperset(keys)}
    return names, reasons


def _can_be_columns(names: list[str]) -> bool:
    return len(names) <= MAX_FIELDS and all(name and "\0" not in name for name in names)


def _doubtful(texts: pa.Array) -> list[int]:
    """The texts that hold a number which a double may not hold to its last digit.

    That is one with a point or an exponent and more than 15 digits, unless it reads just as a double
    prints; and one with an exponent below -99. All bytes are searched at once: where 16 digits stand
    in a row, two of them are at neighbouring multiples of 8.
    """
    import numpy as np

    if texts.buffers()[2] is None:
        return []
    ends = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    margin = np.zeros(2 * _LONG_NUMBER, np.uint8)
    data = np.concatenate([margin, content, margin])
    digit, in_number, exponent = (np.zeros(256, bool) for _ in range(3))
    digit[[*b"0123456789"]] = in_number[[*b"0123456789."]] = exponent[[*b"eE"]] = True
    hits, doubtful = [], []
    for begin in range(0, len(data) - len(margin), _BLOCK_BYTES):
        block = data[begin : begin + _BLOCK_BYTES + 8]
        eighth = in_number[block[::8]]
        at = np.flatnonzero(eighth[:-1] & eighth[1:]) * 8
        for step in (4, 2, 6, 1, 3, 5, 7):
            at = at[in_number[block[at + step]]]
        hits.append(at + begin)
        minus = np.flatnonzero(block == ord("-")) + begin
        for step, kind in ((-1, exponent), (1, digit), (2, digit), (3, digit)):
            minus = minus[kind[data[minus + step]]]
        doubtful.append(minus)

    left = right = np.concatenate(hits)
    for _ in range(_LONG_NUMBER):
        before, behind = in_number[data[left - 1]], in_number[data[right]]
        if not (before.any() or behind.any()):
            break
        left, right = left - before, right + behind
    wanted = (right - left >= 16) & (np.diff(left, prepend=-1) != 0)
    left, right = left[wanted], right[wanted]
    points = np.zeros(len(left), np.int64)
    for step in range(2 * _LONG_NUMBER):
        points += (left + step < right) & (data[np.minimum(left + step, right)] == ord("."))
    endless = in_number[data[left - 1]] | in_number[data[right]]
    doubtful.append(left[endless | ((points < 2) & exponent[data[right]])])
    plain = (points == 1) & ~endless & ~exponent[data[right]]
    left, right = left[plain], right[plain]
    doubtful.append(left[~_prints_as_double(data, left, right)])
    at = np.concatenate(doubtful) - len(margin)
    found = np.unique(np.searchsorted(ends - ends[0], at, side="right") - 1)
    return [int(number) for number in found]


def _prints_as_double(data: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of numbers that stand in `data`, from `left` to before `right`: whether a double prints so."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = np.zeros(len(left) + 1, np.int32)
    np.cumsum(right - left, out=ends[1:])
    digits = data[np.repeat(left - ends[:-1], right - left) + np.arange(ends[-1])]
    numbers = pa.StringArray.from_buffers(len(left), pa.py_buffer(ends), pa.py_buffer(digits))
    try:
        return np.asarray(pc.equal(numbers.cast(pa.float64()).cast(pa.string()), numbers))
    except pa.ArrowInvalid:  # a text such as `.1234567890123456`
        return np.zeros(len(left), bool)


def _fields(text: str) -> dict[str, str | None]:
    """The fields of one valid JSON object: texts as they are, everything else as it is written."""
    fields: dict[str, str | None] = {}
    at = _behind_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _JSON.raw_decode(text, at)
        at = _behind_space(text, _behind_space(text, at) + 1)  # the colon
        value, end = _JSON.raw_decode(text, at)
        fields[name] = value if text[at] == '"' else None if value is None else text[at:end]
        at = _behind_space(text, end)
        if text[at] == ",":
            at = _behind_space(text, at + 1)
    return fields


def _behind_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
