"""JSON without loss: numbers that no double holds, keys given twice, texts that are no text.

orjson reads what it can read exactly. What it would round, drop or refuse is read by the standard
library instead, at about half the speed, so that one bad value costs its own record and not the page.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
import pyarrow as pa

_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
# A number that a double may not hold, where JSON can have one: 16 digits or more, or very small.
_LONG_NUMBER = re.compile(
    rb"[:,\[\s]-?([0-9.]{16,}(?:[eE][-+]?[0-9]+)?|[0-9.]+[eE]-[0-9]{3,})(?![0-9.eE])"
)
_CHARSET = re.compile(r"""charset=["']?([\w.:-]+)""", re.IGNORECASE)


class _Number(str):
    """A number in its own words, because neither 64 bits nor a double hold it."""

    __slots__ = ()


class _Constant(float):
    """NaN or an infinity, which JSON does not have."""


class _Twice(dict):  # type: ignore[type-arg]
    """An object with the same key twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        """All pairs, which is what json.dumps writes."""
        return self._pairs


def parse(body: bytes, content_type: str = "") -> tuple[Any, bool]:
    """The document, and whether all of it is fit; otherwise ask `unfit` of each value.

    Args:
        body: UTF-8, UTF-16 or UTF-32, with or without a byte order mark, or in the charset that
            the content type names.
        content_type: the HTTP header of that name.

    Raises:
        ValueError: it is no JSON, or nested too deeply; the text quotes nothing of it.
    """
    try:
        document = orjson.loads(body)
        if _is_exact(body, document):
            return document, True
    except (orjson.JSONDecodeError, TypeError):  # TypeError: nested deeper than orjson writes
        pass
    named = _CHARSET.search(content_type)
    try:
        codec = codecs.lookup(named[1]).name if named else "utf-8"
    except LookupError:
        codec = "utf-8"
    if codec == "utf-8":
        codec = json.detect_encoding(body)
    try:
        document = _TOLERANT.decode(body.decode(codec, "surrogateescape"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, at character {error.pos}") from None
    except UnicodeError:
        raise ValueError(f"not JSON: no text in {codec}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if isinstance(document, _Twice):
        raise ValueError("JSON that has the same key twice")
    return document, False


def unfit(record: Any) -> str | None:
    """Why a value of a document is no record that can land, or None if it is one."""
    if not isinstance(record, dict):
        kinds = {str: "a text", list: "a list", bool: "a boolean", type(None): "null"}
        return f"not an object but {kinds.get(type(record), 'a number')}"
    try:
        dumps(record)
    except TypeError as error:
        if isinstance(error.__cause__, ValueError):
            return str(error.__cause__)
        deep = "ecursion" in str(error)
        return "nested too deeply" if deep else "a text that is not UTF-8"
    return None


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Compact JSON; numbers exactly as they came.

    Raises:
        TypeError: the value is unfit.
    """
    return orjson.dumps(
        value, default=_plain, option=_OPTIONS | (orjson.OPT_SORT_KEYS if sort_keys else 0)
    )


def raw(value: Any) -> bytes | None:
    """The bytes of a value that may be unfit, in compact JSON, or None if it is nested too deeply."""
    try:
        return dumps(value)
    except TypeError:
        pass
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return json.dumps(value, separators=(",", ":")).encode()
    except RecursionError:
        return None


def table(records: Sequence[dict[str, Any]], ignore: Iterable[str] = ()) -> pa.Table:
    """Records that are fit as an Arrow table of all their fields but those to ignore.

    Columns have the type of their values: text, integer, double, boolean. Nested values, values of
    several types and numbers beyond 64 bits and double are JSON text, so that none is lost.
    """
    names: dict[str, Any] = {}
    for record in records:
        names.update(record)
    kept = [name for name in names if name not in set(ignore)]
    columns = [_column([record.get(name) for record in records]) for name in kept]
    return pa.table(columns, names=kept)


def _column(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        pass
    else:
        booleans = pa.types.is_floating(array.type) and bool in set(map(type, values))
        if not booleans and not pa.types.is_nested(array.type):
            return array
    return pa.array(
        [v if v is None or isinstance(v, str) else dumps(v).decode() for v in values], pa.string()
    )


def _is_exact(body: bytes, document: Any) -> bool:
    """Whether nothing was lost between the body and what orjson made of it."""
    written = orjson.dumps(document)
    if written == body.strip():
        return True
    digits = body.translate(_DIGITS, b".")
    if (b"0" * 16 in digits or b"e-000" in digits) and not all(
        _holds(number.decode()) for number in _LONG_NUMBER.findall(body)
    ):
        return False
    # Every pair has a colon: one that is missing was dropped for another of the same key.
    escaped = b"\\u003a" in body or b"\\u003A" in body
    return not escaped and body.count(b":") == written.count(b":")


def _holds(number: str) -> bool:
    """Whether 64 bits or a double hold the number; what is none is not lost either."""
    if number.isdecimal():
        return len(number) < 19
    try:
        value = float(number)
        return math.isfinite(value) and (
            repr(value) == number or Decimal(repr(value)) == Decimal(number)
        )
    except (ValueError, InvalidOperation):
        return False


def _integer(text: str) -> int | _Number:
    if len(text) < 19 or (len(text) <= 20 and -(1 << 63) <= int(text) < 1 << 64):
        return int(text)
    return _Number(text)


def _float(text: str) -> float | _Number:
    return float(text) if _holds(text) else _Number(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Twice(pairs)


def _plain(value: Any) -> orjson.Fragment:
    if isinstance(value, _Number):
        return orjson.Fragment(value.encode())
    raise ValueError(
        "the same key twice" if isinstance(value, _Twice) else "NaN or Infinity, which JSON has not"
    )


_TOLERANT = json.JSONDecoder(
    parse_float=_float,
    parse_int=_integer,
    parse_constant=_Constant,
    object_pairs_hook=_object,
    strict=False,  # a bare line break inside a text is no doubt about what it says
)
