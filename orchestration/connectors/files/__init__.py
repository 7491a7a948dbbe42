"""What the modules about files share: a file, what it should hold, and what came out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.lake_files import LakeFiles

FileFormat = Literal["parquet", "csv", "ndjson"]

LINE_BYTES = 16 * 2**20
"""A longer line of a CSV or NDJSON file is set aside."""
BLOCK_BYTES = 8 * 2**20
"""Text is decoded in blocks of this size."""
RAW_BYTES = 1024
"""What is kept of a file, or of a line, that is too long to keep."""


class UnreadableFileError(Exception):
    """A file that is not what it should be; the message says why, without its data."""


class BadLine(NamedTuple):
    """What is no row: why, its bytes, and its number in the file, from 1."""

    reason: str
    raw: bytes | None
    number: int


class Piece(NamedTuple):
    """Some of a file's rows, in their order, and what was no row between them."""

    rows: pa.Table
    bad: list[BadLine]


class LaterError(Exception):
    """A file that cannot be read now; the message says why."""


class File(NamedTuple):
    """A file as it was listed.

    Attributes:
        path: in the location, with `/` between its parts: its name in positions, rows and errors.
            One that ends with `/` is a folder that may not be listed.
        size: bytes.
        modified: microseconds; of a local file when anything about it changed, its rights included.
        address: where its store finds it.
    """

    path: str
    size: int
    modified: int
    address: str


def is_utf8(raw: bytes) -> bool:
    """Whether the bytes are text."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(name: str) -> str:
    """A column's name, fit to print."""
    return repr("".join(c if c.isprintable() else "?" for c in name)[:80])


def require_distinct(names: Iterable[str]) -> None:
    """Fail when columns cannot stand side by side in one table, where upper and lower case are one.

    Raises:
        UnreadableFileError: it names two.
    """
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            first = seen[name.lower()]
            raise UnreadableFileError(f"two columns of one name: {shown(first)} and {shown(name)}")
        seen[name.lower()] = name


def text_schema(source: LakeFiles, names: Iterable[str]) -> pa.Schema:
    """Columns of text, without those that are ignored."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in names if name not in source.ignore])


def too_long_line(start: bytes, number: int) -> BadLine:
    """A line that is longer than `LINE_BYTES`."""
    return BadLine(f"longer than {LINE_BYTES // 2**20} MiB", start[:RAW_BYTES], number)


def with_end(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The blocks, and after them an empty one that is marked as the last."""
    for block in blocks:
        yield block, False
    yield b"", True
