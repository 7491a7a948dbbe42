"""Reads files of a lake, Parquet, CSV and NDJSON, from a folder or an S3-compatible store, each once.

Position: `{"files": {"<path in the location>": [<bytes>, <modified, µs>, "<hash of the content>"]}}`.

- A file whose size and modification time are as they were is not opened. One that was only touched
  brings an empty batch; one that was rewritten in place brings its rows anew, in place of the old
  (`replaces`). Its new version is broken: the old rows stay. Moved or renamed, it is another file.
- A file is decoded to its end before its first row is handed over, and lands whole or not at all:
  what is broken, truncated, encrypted, mislabelled or may not be read becomes one rejected row, and is
  looked at again when it has changed or a span names it. The others land.
- A file that changed while it was read, or vanished, is left for the next time, and logged.
- A file that is deleted at the source keeps its rows, and is known again when it comes back.
- Folders called `key=value` are columns of text, unless the file has a column of that name itself.
- Links are not followed. As in Spark and pyarrow, what begins with `.` or `_` is no data.

A lake file may hold equal rows; each is kept. A rejected line's place is `<path>:<line>`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

from orchestration.connectors import SOURCE_POSITION, Batch, Position, Span, rejected_rows
from orchestration.connectors.files import (
    RAW_BYTES,
    File,
    FileFormat,
    LaterError,
    UnreadableFileError,
)
from orchestration.connectors.files.formats import decode
from orchestration.connectors.files.stores import Bucket, Folder
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 100_000
BATCH_BYTES = 64 * 2**20
HELD_BYTES = 32 * 2**20
"""More of a file's rows than this wait on disk until it is read to its end."""
FILES_TOGETHER = 5_000
"""Most small files in one transaction, which costs about 50 ms however few rows it holds."""

LINES_WITHOUT_A_ROW = 100
"""A file with more bad lines and no good one is set aside as a whole."""

_SETTLED_MICROSECONDS = 2_000_000
"""A file that changed later than this before it was read may change again without its time showing it."""
_HASH_DIGITS = 16
_CELLS = 4_000_000
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LakeFiles:
    """The files of one table.

    Attributes:
        location: a folder, or `s3://bucket/prefix`. Credentials, region and endpoint are found where
            AWS's own tools find them (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
        pattern: which files, by their path in the location: `*` and `?` stay within a folder, `**/`
            is any number of folders, such as `**/*.parquet`.
        file_format: what they are; `.gz` and `.zst` at the end of a name are unpacked.
        system: the source system's short name, for errors.
        table: what the table is called in that system, for errors.
        location_setting: the setting that holds `location`, for errors.
        ignore: columns to leave out.
        header: the names of a CSV's columns, for files without a header line.
        delimiter: between a CSV's fields; empty: found out per file, of `,`, `;`, tab and `|`.
        encoding: of CSV and NDJSON files without a byte order mark.
        max_expansion: how many times its size a file may unpack to, beyond the first GiB.
    """

    location: str = field(repr=False)
    pattern: str
    file_format: FileFormat
    system: str
    table: str
    location_setting: str
    ignore: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = "utf-8"
    max_expansion: int = 200

    def __post_init__(self) -> None:
        try:
            " ".encode(self.encoding)
        except LookupError:
            expected, arrived = "an encoding, such as cp1252", self.encoding
        else:
            if not self.delimiter or re.fullmatch(r'[^"\r\n\x80-\U0010ffff]', self.delimiter):
                return
            expected, arrived = "a delimiter of one ASCII character", repr(self.delimiter)
        raise MendableError(
            f"{self.system}.{self.table}",
            expected=expected,
            arrived=arrived,
            mend="change it in the table's description",
        )


def read(
    source: LakeFiles, position: Position, span: Span | None = None, *, batch_rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Read the files that are new or were rewritten, in the order of their paths.

    A transaction is one file, or many small ones of the same shape; then each row says its file.

    Args:
        source: the files.
        position: which files were read; `{}`: none.
        span: read the files whose path is in it, whatever the position, in place of their rows; the
            position only gains those that it did not know as they are now.
        batch_rows: most rows in a batch.

    Raises:
        SourceUnavailableError: the store does not answer.
        MendableError: there is no such folder or bucket, or the credentials are refused.
    """
    known: _Known = position.get("files", {})
    store = (Bucket if source.location.startswith("s3:") else Folder)(source)
    listed_at = time.time_ns() // 1000
    matches = _pattern(source.pattern).fullmatch
    todo = [
        file
        for file in sorted(store.files())
        if (matches(file.path) or file.path.endswith("/")) and _is_due(file, known, span)
    ]
    ragged = source.file_format == "ndjson"
    transaction = _Transaction(known, batch_rows, ragged=ragged)
    for file, open_file in store.ready(todo):
        try:
            content = _content(
                source, file, open_file, known.get(file.path), again=span is not None
            )
            store.require_unchanged(file)
        except LaterError as error:
            name = f"{source.system}.{source.table}"
            _log.warning("%s: %r %s; it is left for the next time", name, file.path, error)
            continue
        if not transaction.takes(content):
            yield from transaction.batches()
            transaction = _Transaction(transaction.files, batch_rows, ragged=ragged)
        transaction.add(content, settled=file.modified < listed_at - _SETTLED_MICROSECONDS)
    yield from transaction.batches()


_Known = dict[str, list[Any]]
"""A position's files: size, modification time and hash by path."""


def _pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of paths as a regular expression over whole ones."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(meanings.get(p) or re.escape(p) for p in parts), re.DOTALL)


def _is_due(file: File, known: _Known, span: Span | None) -> bool:
    if span is None:
        return known.get(file.path, [])[:2] != [file.size, file.modified]
    return (span.start is None or span.start <= file.path) and (
        span.end is None or file.path < span.end
    )


# One file


class _Tables:
    """Tables in their order: in memory, and beyond a limit in a temporary file without a name."""

    def __init__(self, tables: Iterable[pa.Table] = ()) -> None:
        self.rows = self.size = 0
        self._held: list[pa.Table] = []
        self._held_bytes = self._spilled = 0
        self._file: IO[bytes] | None = None
        for table in tables:
            self.add(table)

    def add(self, table: pa.Table) -> None:
        if table.num_rows == 0:
            return
        self.rows += table.num_rows
        self.size += table.nbytes
        self._held.append(table)
        self._held_bytes += table.nbytes
        if self._held_bytes > HELD_BYTES:
            self._spill()

    def _spill(self) -> None:
        import pyarrow as pa

        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the tables
        for table in self._held:
            with pa.ipc.new_stream(self._file, table.schema) as writer:
                writer.write_table(table)
        self._spilled += len(self._held)
        self._held, self._held_bytes = [], 0

    def __iter__(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        if self._file is not None:
            self._file.seek(0)
            for _ in range(self._spilled):
                with pa.ipc.open_stream(self._file) as reader:
                    yield reader.read_all()
        yield from self._held


@dataclass
class _Content:
    """What a file holds.

    Attributes:
        file: the file.
        digest: the hash of its bytes; None when they may not be read.
        replaces: whether its rows take the place of those that it brought before.
        columns: the types of its rows' columns, those of its folders included.
        folders: the values of its folders' columns.
        rows: its rows.
        rejected: what of it is no row.
    """

    file: File
    digest: str | None = None
    replaces: bool = False
    columns: dict[str, pa.DataType] = field(default_factory=dict)
    folders: dict[str, str | None] = field(default_factory=dict)
    rows: _Tables = field(default_factory=_Tables)
    rejected: _Tables = field(default_factory=_Tables)

    def tables(self, columns: dict[str, pa.DataType]) -> Iterator[pa.Table]:
        """Its rows, with these columns, null where it has none of that name."""
        import pyarrow as pa

        at_once = max(_CELLS // max(len(columns), 1), 1)
        for whole in self.rows:
            for first in range(0, whole.num_rows, at_once):
                table = whole.slice(first, at_once)
                own = set(table.column_names)
                yield pa.table(
                    {
                        name: table[name]
                        if name in own
                        else pa.repeat(pa.scalar(self.folders.get(name), kind), table.num_rows)
                        for name, kind in columns.items()
                    }
                )


def _content(
    source: LakeFiles,
    file: File,
    open_file: Callable[[], pa.NativeFile],
    before: list[Any] | None,
    *,
    again: bool,
) -> _Content:
    """Read a file to its end.

    Args:
        source: what it should be.
        file: the file.
        open_file: opens it.
        before: what the position knows of it.
        again: decode it although nothing about it has changed.
    """
    digest = raw = None
    aside = _Tables()
    try:
        with closing(open_file()) as stream:
            digest = _digest(stream)
            if before is not None and before[2] == digest and not again:
                return _Content(file, digest)
            stream.seek(0)
            raw = bytes(stream.read(RAW_BYTES))
            stream.seek(0)
            content = _decoded(source, file, digest, stream)
            content.replaces = again or before is not None
            if content.rows.rows or not content.rejected.rows:
                return content
            aside = content.rejected
            if aside.rows > LINES_WITHOUT_A_ROW:
                raise UnreadableFileError(f"not one row, but {_summary(aside)}")
    except UnreadableFileError as error:
        aside = _Tables([rejected_rows([str(error)], [raw], [file.path])])
    except PermissionError:
        aside = _Tables([rejected_rows(["it may not be read"], [None], [file.path])])
    except FileNotFoundError:
        raise LaterError("vanished before it was read") from None
    except OSError as error:
        raise LaterError(f"could not be read ({error.strerror or type(error).__name__})") from None
    known = before is not None and before[2] == digest  # it was set aside for that already
    return _Content(file, digest, rejected=_Tables() if known else aside)


def _digest(stream: pa.NativeFile) -> str:
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()[:_HASH_DIGITS]


def _decoded(source: LakeFiles, file: File, digest: str, stream: pa.NativeFile) -> _Content:
    """A file's rows and rejected lines, all of them.

    Raises:
        UnreadableFileError: it is broken.
    """
    import pyarrow as pa

    content = _Content(file, digest)
    for piece in decode(source, file.path, file.size, stream):
        for name, kind in zip(piece.rows.column_names, piece.rows.schema.types, strict=True):
            content.columns.setdefault(name, kind)
        content.rows.add(piece.rows)
        bad = piece.bad
        places = [f"{file.path}:{line.number}" for line in bad]
        content.rejected.add(
            rejected_rows([line.reason for line in bad], [line.raw for line in bad], places)
        )
    own = {name.lower() for name in content.columns}
    if SOURCE_POSITION in own:
        raise UnreadableFileError(f"a column is called {SOURCE_POSITION}, which landing writes")
    for name, value in _folder_columns(file.path).items():
        if name.lower() not in own and name not in source.ignore:
            content.folders[name] = value
            content.columns[name] = pa.string()
    return content


def _summary(rejected: _Tables) -> str:
    """The reasons, most frequent first."""
    reasons: Counter[str] = Counter()
    for table in rejected:
        reasons.update(table["reason"].to_pylist())
    return ", ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))


def _folder_columns(path: str) -> dict[str, str | None]:
    """The values that `key=value` folders give, as Hive and Spark write them."""
    columns: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            name = unquote(name)
            if name.lower() in map(str.lower, columns):
                raise UnreadableFileError("two of its folders give one column")
            columns[name] = None if value == _NO_VALUE else unquote(value)
    return columns


# One transaction


class _Transaction:
    """Files that land together, and the position once they have.

    Attributes:
        files: the position's files, those that were added included.
    """

    def __init__(self, known: _Known, batch_rows: int, *, ragged: bool) -> None:
        """`ragged`: what a file does not have is null, so it may have fewer columns than the first."""
        self.files, self._known = dict(known), known
        self._batch_rows, self._ragged = batch_rows, ragged
        self._contents: list[_Content] = []
        self._columns: dict[str, pa.DataType] = {}
        self._rows = self._size = 0

    def takes(self, content: _Content) -> bool:
        """Whether a file may land together with the others: it is small, and of their shape."""
        if not self._contents:
            return True
        size = self._size + content.rows.size + content.rejected.size
        if len(self._contents) == FILES_TOGETHER or size > BATCH_BYTES:
            return False
        if not content.rows.rows or not self._rows:
            return True
        same = (
            content.columns.items() <= self._columns.items()
            if self._ragged
            else content.columns == self._columns
        )
        return same and self._rows + content.rows.rows <= self._batch_rows

    def add(self, content: _Content, *, settled: bool) -> None:
        """Add a file; one that has not settled is hashed again the next time."""
        file = content.file
        self.files[file.path] = [file.size, file.modified if settled else 0, content.digest]
        self._contents.append(content)
        if content.rows.rows and not self._rows:
            self._columns = content.columns
        self._rows += content.rows.rows
        self._size += content.rows.size + content.rejected.size

    def batches(self) -> Iterator[Batch]:
        """The files' rows and rejected lines; the last batch completes the transaction."""
        import pyarrow as pa

        if not self._contents:
            return
        columns = self._columns or self._contents[0].columns
        nothing = pa.schema(columns).empty_table()
        paths = [c.file.path for c in self._contents if c.rows.rows or not self._rows]
        where = paths[0]
        if len(paths) > 1:
            where = f"{len(paths):,} files from {paths[0]} to {paths[-1]}"
        batch = Batch(
            nothing,
            {"files": self._known},
            where=where,
            replaces=tuple(c.file.path for c in self._contents if c.replaces),
            completes=False,
            first_time=True,
            separable=True,
        )
        tables = self._tables(columns, say_file=len(paths) > 1)
        rejected = (table for content in self._contents for table in content.rejected)
        held: Batch | None = None
        for rows, bad in zip_longest(self._batched(tables), rejected):
            if held is not None:
                yield held
            held = replace(batch, rows=nothing if rows is None else rows, rejected=bad)
        yield replace(held or batch, position={"files": self.files}, completes=True)

    def _tables(self, columns: dict[str, pa.DataType], *, say_file: bool) -> Iterator[pa.Table]:
        import pyarrow as pa

        for content in self._contents:
            for table in content.tables(columns):
                if say_file:
                    places = pa.repeat(pa.scalar(content.file.path), table.num_rows)
                    table = table.append_column(SOURCE_POSITION, places)
                yield table

    def _batched(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables' rows in tables that are as large as a batch may be."""
        import pyarrow as pa

        held: list[pa.Table] = []
        rows = size = 0
        for table in tables:
            while table.num_rows:
                part = table.slice(0, self._batch_rows - rows)
                if held and (not part.num_rows or size + part.nbytes > BATCH_BYTES):
                    yield pa.concat_tables(held).combine_chunks()
                    held, rows, size = [], 0, 0
                    continue
                held.append(part)
                rows, size = rows + part.num_rows, size + part.nbytes
                table = table.slice(part.num_rows)
        if held:
            yield pa.concat_tables(held).combine_chunks()
