"""CSV text as rows of text, and the lines that are none.

RFC 4180: a field that begins with `"` ends with the next `"` that is not doubled, and may hold line
breaks; anywhere else a `"` is a character like any other. `""` is the empty text, nothing at all is
null. A line that is none (a quote left open, text after a closing one, too many or too few fields,
bytes that are not UTF-8, NUL, too long) is given back as it is, and the next one begins at the next
line break. Lines that hold nothing are passed over.

pyarrow turns text into columns; what is its own here is finding where records end and which are bad,
because no library at hand gives back every bad line with its bytes, and every good one after it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestration.connectors.files import (
    LINE_BYTES,
    BadLine,
    Piece,
    UnreadableFileError,
    is_utf8,
    require_distinct,
    text_schema,
    too_long_line,
    with_end,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from orchestration.connectors.lake_files import LakeFiles

_OPEN_QUOTE = "a quote that is not closed, or text after a closing one"


class _Grammar(NamedTuple):
    """A delimiter; a field, a record, and the beginning of one that may go on, over bytes."""

    delimiter: bytes
    field: re.Pattern[bytes]
    record: re.Pattern[bytes]
    unfinished: re.Pattern[bytes]


@lru_cache
def _grammar(delimiter: bytes) -> _Grammar:
    d = re.escape(delimiter)
    field = rb'(?:"[^"]*+(?:""[^"]*+)*+"(?=%b|\r?\n)|[^"%b\r\n][^%b\r\n]*+|)' % (d, d, d)
    return _Grammar(
        delimiter,
        re.compile(field),
        re.compile(rb"%b(?:%b%b)*+\r?\n" % (field, d, field)),
        re.compile(
            rb'(?:%b%b)*+(?:"[^"]*+(?:""[^"]*+)*+"?+|[^"%b\r\n][^%b\r\n]*+|)\r?\Z'
            % (field, d, d, d)
        ),
    )


class _Records(NamedTuple):
    """Where the records of a block end.

    Attributes:
        ends: the offset after each record, line break included.
        broken: the beginnings of those that are none.
        odd: the beginnings of those with a `"` inside a field that does not begin with one.
        newlines: the offsets of all line breaks, those inside fields included.
        complete: the offset after the last record; what follows needs the next block.
    """

    ends: np.ndarray
    broken: list[int]
    odd: list[int]
    newlines: np.ndarray
    complete: int


def _records(block: bytes, grammar: _Grammar, *, final: bool) -> _Records:
    """Find the records of a block that begins with one; `final`: it ends with the last of them."""
    import numpy as np

    array = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(array == 10)
    if b'"' not in block:
        ends = newlines + 1
        return _Records(ends, [], [], newlines, int(ends[-1]) if ends.size else 0)

    # Counted from the beginning of a record, a quote at an even place opens a field or is the second
    # of a doubled one, and at an odd place closes or is the first. Where each is found where it may
    # be, the block is regular, and a record ends at each line break with an even count before it.
    # Around the others, the misfits, a record is looked at by itself.
    quotes = np.flatnonzero(array == 34)
    delimiter = grammar.delimiter[0]
    before = array[quotes - 1]
    after = array[np.minimum(quotes + 1, len(block) - 1)]
    opens = (before == delimiter) | (before == 10) | (quotes == 0)
    closes = (after == delimiter) | (after == 10) | (quotes == len(block) - 1)
    closes |= (after == 13) & (
        (array[np.minimum(quotes + 2, len(block) - 1)] == 10) | (quotes == len(block) - 2)
    )
    touching = np.diff(quotes) == 1
    opens[1:] |= touching
    closes[:-1] |= touching
    even = np.arange(quotes.size) % 2 == 0
    misfits = (
        np.flatnonzero(~np.where(even, opens, closes)),
        np.flatnonzero(~np.where(even, closes, opens)),
    )
    quotes_before = np.searchsorted(quotes, newlines)
    found: list[Any] = []
    broken: list[int] = []
    odd: list[int] = []
    start = first_quote = 0
    while start < len(block):
        ahead = misfits[first_quote % 2]
        next_misfit = np.searchsorted(ahead, first_quote)
        regular = next_misfit == ahead.size
        stop = len(block) if regular else quotes[ahead[next_misfit]]
        low, high = np.searchsorted(newlines, [start, stop])
        outside = (quotes_before[low:high] - first_quote) % 2 == 0
        ends = newlines[low:high][outside] + 1
        found.append(ends)
        start = int(ends[-1]) if ends.size else start
        if start == len(block) or (regular and not final):
            break
        match = None if regular else grammar.record.match(block, start)
        if match:
            end = match.end()
            odd.append(start)
        else:
            end = block.find(b"\n", start) + 1
            if not final and (not end or grammar.unfinished.match(block, start)):
                break
            broken.append(start)
        found.append([end])
        start = end
        first_quote = int(np.searchsorted(quotes, start))
    ends = np.concatenate(found) if found else np.empty(0, np.int64)
    return _Records(ends.astype(np.int64), broken, odd, newlines, start)


def csv_rows(source: LakeFiles, blocks: Iterator[bytes]) -> Iterator[Piece]:
    """Decode a CSV's text, which comes in blocks of UTF-8 cut anywhere.

    Raises:
        UnreadableFileError: it has no header that can be read, or one that names a column twice.
    """
    grammar: _Grammar | None = None
    names = list(source.header)
    carry, line, too_long = b"", 1, False
    for arrived, final in with_end(blocks):
        block = carry + arrived
        if final and block and not block.endswith(b"\n"):
            block += b"\n"
        if grammar is None:
            carry = block.lstrip(b"\r\n")
            line += block.count(b"\n", 0, len(block) - len(carry))
            block = carry
            if not block:
                continue
            grammar = _grammar(_delimiter(source, block))
            require_distinct(text_schema(source, names).names)
        if not names:
            header = grammar.record.match(block)
            if not final and header is None:
                if len(block) > LINE_BYTES:
                    raise UnreadableFileError("its header has no end")
                carry = block
                continue
            names = _header(grammar, header)
            require_distinct(text_schema(source, names).names)
            line += block.count(b"\n", 0, header.end() if header else 0)
            block = block[header.end() if header else 0 :]
        if too_long:
            _, ended, block = block.partition(b"\n")
            line, too_long = line + len(ended), not ended
        records = _records(block, grammar, final=final)
        carry = block[records.complete :]
        if records.ends.size:
            yield _piece(source, names, grammar, block, records, line)
            line += int(records.newlines.searchsorted(records.complete))
        if len(carry) > LINE_BYTES:
            first, ended, rest = carry.partition(b"\n")
            bad = BadLine(_OPEN_QUOTE, first, line) if ended else too_long_line(first, line)
            yield Piece(text_schema(source, names).empty_table(), [bad])
            line, carry, too_long = line + len(ended), rest, not ended
    if grammar is None:
        raise UnreadableFileError("it holds nothing but line breaks")
    yield Piece(text_schema(source, names).empty_table(), [])


def _delimiter(source: LakeFiles, text: bytes) -> bytes:
    """The source's, or the one that cuts most of the first lines into as many fields as the header."""
    if source.delimiter:
        return source.delimiter.encode()
    sample = text[: 2**16].decode("utf-8", "replace").splitlines(keepends=True)[:100]

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            counts = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return 0, 0
        expected = len(source.header) or counts[0]
        return (counts.count(expected) / len(counts), expected) if expected > 1 else (0, 0)

    return max(",;\t|", key=fit).encode()


def _header(grammar: _Grammar, header: re.Match[bytes] | None) -> list[str]:
    """The columns' names; one without a name is called by its place, `column0` and so on."""
    if header is None or b"\0" in header.group():
        raise UnreadableFileError("its header is not a line of CSV")
    try:
        fields = [_unquoted(field).decode() for field in _fields(grammar, header.group())]
    except UnicodeDecodeError:
        raise UnreadableFileError("its header is not UTF-8") from None
    return [name or f"column{number}" for number, name in enumerate(fields)]


def _fields(grammar: _Grammar, record: bytes) -> list[bytes]:
    """The fields of a whole record, as they are written."""
    fields: list[bytes] = []
    place = 0
    while match := grammar.field.match(record, place):
        fields.append(match.group())
        place = match.end() + 1
        if record[match.end() : place] != grammar.delimiter:
            break
    return fields


def _unquoted(field: bytes) -> bytes:
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field


def _piece(
    source: LakeFiles,
    names: list[str],
    grammar: _Grammar,
    block: bytes,
    records: _Records,
    line: int,
) -> Piece:
    """The rows of a block's records; `line` is the number of its first."""
    import pyarrow as pa

    end = records.complete
    longest = int(max(records.ends[0], (records.ends[1:] - records.ends[:-1]).max(initial=0)))
    if not (
        records.broken
        or block.find(b"\0", 0, end) >= 0
        or block.count(b"\r", 0, end) != block.count(b"\r\n", 0, end)
    ):
        try:
            return Piece(_parsed(source, names, grammar, memoryview(block)[:end], longest), [])
        except pa.ArrowInvalid:
            pass  # some line is to blame; which one is found out below
    good, bad = _sifted(grammar, len(names), block, records)
    return Piece(
        _parsed(source, names, grammar, good, longest),
        [
            BadLine(reason, raw, line + int(records.newlines.searchsorted(start)))
            for start, raw, reason in bad
        ],
    )


def _parsed(
    source: LakeFiles, names: list[str], grammar: _Grammar, text: bytes | memoryview, longest: int
) -> pa.Table:
    """Records as rows of text; `longest` is the most bytes that one has."""
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

    schema = text_schema(source, names)
    if not text:
        return schema.empty_table()
    return read_csv(
        pa.BufferReader(text),
        ReadOptions(column_names=names, block_size=max(2**20, 2 * longest)),
        ParseOptions(delimiter=grammar.delimiter.decode(), newlines_in_values=True),
        ConvertOptions(
            column_types=schema,
            include_columns=schema.names,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _sifted(
    grammar: _Grammar, columns: int, block: bytes, records: _Records
) -> tuple[bytes, list[tuple[int, bytes, str]]]:
    """The records that are rows; of the others, where they begin, their bytes, and what is wrong."""
    import numpy as np

    ends = records.ends
    starts = np.concatenate([[0], ends[:-1]])
    array = np.frombuffer(block, np.uint8)[: records.complete]

    def at(offsets: Any) -> list[int]:
        """Which records the offsets lie in."""
        found: list[int] = np.unique(np.searchsorted(ends, offsets, "right")).tolist()
        return found

    quotes = np.flatnonzero(array == 34)
    delimiters = np.flatnonzero(array == grammar.delimiter[0])
    record = np.searchsorted(ends, delimiters, "right")
    quotes_before = np.searchsorted(quotes, delimiters) - np.searchsorted(quotes, starts)[record]
    fields = np.bincount(record[quotes_before % 2 == 0], minlength=ends.size) + 1
    for number in at(records.odd):
        fields[number] = len(_fields(grammar, block[starts[number] : ends[number]]))
    blank = (ends - starts == 1) | ((ends - starts == 2) & (array[starts] == 13))
    reasons = {
        number: f"{fields[number]} fields instead of {columns}"
        for number in np.flatnonzero((fields != columns) & ~blank).tolist()
    }
    returns = np.flatnonzero(array == 13)
    alone = array[returns + 1] != 10
    for number in at(returns[alone]):
        match = grammar.record.match(block, starts[number])
        if match is None or match.end() != ends[number]:
            reasons[number] = "a carriage return in the middle of a line"
    if not is_utf8(block[: records.complete]):
        for number in at(np.flatnonzero(array >= 128)):
            if not is_utf8(block[starts[number] : ends[number]]):
                reasons[number] = "bytes that are not UTF-8"
    for number in at(np.flatnonzero(array == 0)):
        reasons[number] = "a NUL byte"
    for number in at(records.broken):
        reasons[number] = _OPEN_QUOTE
    bad = sorted(reasons)
    good_from = np.concatenate([[0], ends[bad]])
    good_to = np.concatenate([starts[bad], [records.complete]])
    good = b"".join(block[start:end] for start, end in zip(good_from, good_to, strict=True))
    return good, [
        (int(starts[n]), block[starts[n] : ends[n]].rstrip(b"\r\n"), reasons[n]) for n in bad
    ]
