"""One file's bytes as Arrow tables: unpacking, telling what a file really is, Parquet."""

from __future__ import annotations

import tempfile
from codecs import getincrementaldecoder, lookup
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from orchestration.connectors.files import (
    BLOCK_BYTES,
    RAW_BYTES,
    BadLine,
    FileFormat,
    Piece,
    UnreadableFileError,
    is_utf8,
    require_distinct,
    shown,
    with_end,
)
from orchestration.connectors.files.csv_rows import csv_rows
from orchestration.connectors.files.ndjson_rows import ndjson_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.lake_files import LakeFiles

_PIECE_BYTES = 32 * 2**20
_EXPANSION_FLOOR = 2**30
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
_KINDS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"par1": "Parquet",
    b"pare": "encrypted Parquet",
    b"pk\x03\x04": "a ZIP archive or a spreadsheet",
    b"bzh": "bzip2",
    b"\xfd7zxz": "xz",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}
"""How files begin, in lower case."""
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def decode(source: LakeFiles, name: str, size: int, stream: pa.NativeFile) -> Iterator[Piece]:
    """Decode a file, piece by piece; every piece's tables are bounded in bytes.

    Args:
        source: what it should be.
        name: the file's name; its ending tells plain from `.gz` and `.zst`.
        size: the file's bytes, compressed if it is.
        stream: the file, seekable, at its beginning.

    Raises:
        UnreadableFileError: it is not what its name says, broken or encrypted, or has columns that
            cannot stand side by side. Pieces that came before are void.
    """
    import pyarrow as pa

    compression = next((kind for end, kind in _SUFFIXES.items() if name.endswith(end)), None)
    _require_kind(source.file_format, compression, size, stream.read(64))
    stream.seek(0)
    limit = max(_EXPANSION_FLOOR, source.max_expansion * size)
    try:
        if source.file_format == "parquet":
            if compression is not None:
                stream = _unpacked(pa.CompressedInputStream(stream, compression), limit)
            pieces = _parquet(source, stream)
        else:
            if compression is not None:
                stream = pa.CompressedInputStream(stream, compression)
            text = _utf8(_bounded(_blocks(stream), limit), source.encoding)
            pieces = (csv_rows if source.file_format == "csv" else ndjson_rows)(source, text)
        yield from pieces
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None):
            raise  # the disk's, not the file's
        raise UnreadableFileError(_broken(source.file_format, compression, error)) from None


def _require_kind(
    file_format: FileFormat, compression: str | None, size: int, start: bytes
) -> None:
    """Fail when a file's first bytes are not those of what it should be."""
    if size == 0:
        raise UnreadableFileError("the file is empty")
    start = start.lstrip().lower()
    found = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)
    expected = compression or ("Parquet" if file_format == "parquet" else None)
    if found == "encrypted Parquet":
        raise UnreadableFileError("an encrypted Parquet file")
    if found != expected:
        raise UnreadableFileError(
            f"mislabelled: named like {expected or f'plain {file_format}'},"
            f" but it is {found or 'something else'}"
        )


def _broken(file_format: FileFormat, compression: str | None, error: Exception) -> str:
    text = str(error)
    if "encrypt" in text or "decrypt" in text:
        return "an encrypted Parquet file"
    if "Truncated compressed stream" in text:
        return f"truncated: its {compression} data break off"
    if compression is not None and file_format != "parquet":
        return f"corrupt: its {compression} data cannot be unpacked"
    if "magic bytes" in text or "footer" in text:
        return "truncated: a Parquet file without its end"
    return f"corrupt: not {file_format} that can be decoded ({type(error).__name__})"


def _blocks(stream: pa.NativeFile) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield bytes(block)


def _bounded(blocks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    unpacked = 0
    for block in blocks:
        unpacked += len(block)
        if unpacked > limit:
            raise UnreadableFileError(
                f"it unpacks to more than {limit / 2**30:,.0f} GiB: a bomb, or `max_expansion` is too low"
            )
        yield block
    if unpacked == 0:
        raise UnreadableFileError("the file is empty")


def _unpacked(stream: pa.NativeFile, limit: int) -> pa.NativeFile:
    """A compressed file that has to be read back and forth, unpacked to disk."""
    import pyarrow as pa

    file = tempfile.TemporaryFile()  # noqa: SIM115, closed with the stream
    for block in _bounded(_blocks(stream), limit):
        file.write(block)
    file.seek(0)
    return pa.PythonFile(file, mode="r")


def _utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The text as UTF-8 without a byte order mark; what is no text stays as bytes that are not UTF-8."""
    first = next(blocks)
    mark = next((mark for mark in _BYTE_ORDER_MARKS if first.startswith(mark)), b"")
    blocks = chain([first[len(mark) :]], blocks)
    encoding = _BYTE_ORDER_MARKS.get(mark, encoding)
    if lookup(encoding).name == "utf-8":
        yield from blocks
        return
    decoder = getincrementaldecoder(encoding)("surrogateescape")
    try:
        for block, final in with_end(blocks):
            yield decoder.decode(block, final).encode("utf-8", "surrogateescape")
    except UnicodeError:
        raise UnreadableFileError(f"not text in {encoding}") from None


# Parquet


def _parquet(source: LakeFiles, stream: pa.NativeFile) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(
        stream, coerce_int96_timestamp_unit="us", page_checksum_verification=True
    ) as file:
        names = file.schema_arrow.names
        kept = [number for number, name in enumerate(names) if name not in source.ignore]
        require_distinct([names[number] for number in kept])
        metadata, row_number = file.metadata, 0
        yield Piece(_plain(file.schema_arrow.empty_table()).select(kept), [])
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            row_bytes = row_group.total_byte_size // max(row_group.num_rows, 1) + 8 * len(names)
            batch_rows = min(max(_PIECE_BYTES // row_bytes, 1), 65_536)
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group]):
                rows, bad = _valid(_plain(pa.Table.from_batches([batch]).select(kept)), row_number)
                row_number += batch.num_rows
                yield Piece(rows, bad)
        if row_number != metadata.num_rows:
            raise UnreadableFileError("corrupt: a Parquet file with fewer rows than it says")


def _plain(rows: pa.Table) -> pa.Table:
    """The rows without metadata, and without the types that only Arrow has."""
    import pyarrow as pa

    columns = []
    for column in rows.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        elif pa.types.is_decimal256(column.type):
            column = column.cast(pa.string())
        columns.append(column)
    return pa.Table.from_arrays(columns, names=rows.column_names)


def _valid(rows: pa.Table, before: int) -> tuple[pa.Table, list[BadLine]]:
    """The rows without those whose text is not UTF-8, which no Parquet reader checks."""
    import pyarrow as pa

    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        bad: dict[int, BadLine] = {}
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                continue
            binary = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
            for number, value in enumerate(column.cast(binary).to_pylist()):
                if value is not None and not is_utf8(value):
                    reason = f"{shown(name)}: bytes that are not UTF-8"
                    bad[number] = BadLine(reason, value[:RAW_BYTES], before + number + 1)
        rows = rows.take(pa.array([n for n in range(rows.num_rows) if n not in bad], pa.int64()))
        rows.validate(full=True)  # what is still wrong lies deeper: the file is not to be trusted
        return rows, [bad[number] for number in sorted(bad)]
    return rows, []
