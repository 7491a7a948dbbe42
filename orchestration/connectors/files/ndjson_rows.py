"""NDJSON text, a JSON object a line, as rows of text, and the lines that are none.

What is a row, and how its values become text, is said in `json_rows`. Besides, a line is none that has
no value in it, or a value under a key that the file has already in other letters (`Id` beside `id`).
Blank lines are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestration.connectors.files import (
    LINE_BYTES,
    BadLine,
    Piece,
    UnreadableFileError,
    shown,
    text_schema,
    too_long_line,
    with_end,
)
from orchestration.connectors.json_rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.lake_files import LakeFiles

MAX_COLUMNS = 20_000
"""More different keys than this in one file are data, not columns."""
_ROWS_AT_ONCE = 40_000
"""With the most keys that so many rows may bring at once, their cells still fit into memory."""


def ndjson_rows(source: LakeFiles, blocks: Iterator[bytes]) -> Iterator[Piece]:
    """Decode NDJSON text, which comes in blocks of UTF-8 cut anywhere.

    Raises:
        UnreadableFileError: it has more than `MAX_COLUMNS` different keys.
    """
    spellings: dict[str, str] = {}
    carry, line, too_long = b"", 1, False
    for arrived, final in with_end(blocks):
        block = carry + arrived
        if final and block and not block.endswith(b"\n"):
            block += b"\n"
        if too_long:
            _, ended, block = block.partition(b"\n")
            line, too_long = line + len(ended), not ended
        complete = block.rfind(b"\n") + 1
        carry = block[complete:]
        for lines, numbers in _lines(block[:complete]):
            rows, reasons = _rows(lines, spellings)
            wanted = [name for name in rows.column_names if name not in source.ignore]
            bad = [
                BadLine(reasons[n], lines[n].as_py()[:-1], line + numbers[n])
                for n in sorted(reasons)
            ]
            yield Piece(rows.select(wanted), bad)
        line += block.count(b"\n", 0, complete)
        if len(carry) > LINE_BYTES:
            yield Piece(text_schema(source, []).empty_table(), [too_long_line(carry, line)])
            carry, too_long = b"", True


def _lines(block: bytes) -> Iterator[tuple[pa.Array, list[int]]]:
    """The lines that are not blank, line breaks included, and their numbers in the block, from 0."""
    import numpy as np
    import pyarrow as pa

    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == 10) + 1
    if not ends.size:
        return
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    lines = pa.Array.from_buffers(
        pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    )
    is_space = (text == 32) | ((text >= 9) & (text <= 13))
    numbers = np.flatnonzero(np.logical_or.reduceat(~is_space, offsets[:-1]))
    for first in range(0, len(numbers), _ROWS_AT_ONCE):
        part = numbers[first : first + _ROWS_AT_ONCE]
        yield lines.take(pa.array(part)), part.tolist()


def _rows(lines: pa.Array, spellings: dict[str, str]) -> tuple[pa.Table, dict[int, str]]:
    """The lines' rows, and why the others, by their number, are none.

    Args:
        lines: the lines.
        spellings: the file's keys so far, by their lower-case form; gets the new ones.
    """
    import numpy as np
    import pyarrow as pa

    rows, reasons = rows_of(lines)
    kept = np.delete(np.arange(len(lines)), list(reasons))
    there = {name: np.asarray(rows[name].is_valid()) for name in rows.column_names}
    names = [name for name in there if spellings.setdefault(name.lower(), name) == name]
    if len(spellings) > MAX_COLUMNS:
        raise UnreadableFileError(f"more than {MAX_COLUMNS:,} different keys")
    valueless = np.ones(len(kept), bool)
    for values in there.values():
        valueless &= ~values
    unfit = {"a JSON object without a value": valueless}
    for name in there.keys() - names:
        unfit[f"key {shown(name)} beside {shown(spellings[name.lower()])}"] = there[name]
    for reason, which in unfit.items():
        reasons |= dict.fromkeys(kept[which].tolist(), reason)
    if there and len(reasons) + rows.num_rows > len(lines):
        rows = rows.filter(pa.array(~np.any([*unfit.values()], axis=0)))
    return rows.select(names), reasons
