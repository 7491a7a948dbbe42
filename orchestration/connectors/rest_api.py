"""Reads JSON records from REST APIs, page by page: partitions, a range of a cursor, or all there is.

HTTP is requests, the policy of retries urllib3's, pagination and OAuth2 are dlt's REST client. It
is used without dlt's pipelines: no file of dlt's is read or written, and nothing is reported.

Which records are read, and what the position says, is one of three ways:

- **Partitions** (`partitions`, `partition`): a list of what has been published, such as weeks.
  Position `{"<partition>": "<last one read completely>", "listed": <how many there were up to it>}`.
  Names sort in the order of publication, and a published partition never changes. When the list
  has grown *before* that position, a partition came late: everything listed is read again.
- **A range** (`cursor`, `start_param`): the records' own field, such as `updated_at`, from which on
  the API is asked. Position `{"cursor": <largest value read>}`, which moves only when all pages
  have been read, so that their order does not matter. Records at that very value are read again,
  and those of the `overlap` before it; a record that appears further behind is not seen.
- **The whole** (neither): read each time; a fingerprint of the records, whatever their order, says
  whether they changed. Position `{"fingerprint": <hash>, "rows": <count>}`. They replace the table,
  in batches of which only the last completes.

Guarantees. Every record is yielded at least once, whole pages only, and `first_time` never: the
same record may come again at a tie, in an overlap or after a restart, and landing knows it again.
Two equal records are therefore one. In the middle of a partition or range the position holds
`resume`, the last complete page; a read that fails yields the pages it has before it raises.

Shifts. Pages that are counted move when a record before them is deleted or moves to the end, and
the one at the seam would be skipped. By offset, each page begins with the last record of the page
before; by page number, a read that resumes gets the last page again; and the total must not shrink
(nor change at all, except in a range, which grows). Whatever differs, the partition, range or whole
is read from its first page again, a few times. What page numbers cannot show is a shift during a
read that leaves the number of pages as it was. Cursors and links are taken to be stable; one that
is refused on resuming begins again too.

Values arrive as JSON has them; see exact_json.py. A record that is no object, has a key twice, NaN
or text that is not UTF-8 goes to `rejected`; the other records of its page land.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from orchestration.connectors import (
    SOURCE_POSITION,
    Batch,
    Position,
    Span,
    Whole,
    exact_json,
    rejected_rows,
    require_columns,
)
from orchestration.connectors.http_client import ClientCredentials
from orchestration.connectors.rest_pages import (
    Api,
    Page,
    answer_error,
    description_error,
    field_names,
)
from orchestration.errors import MendableError

BATCH_ROWS = 20_000
BATCH_BYTES = 16 << 20
"""A batch also ends with the page that brings it to so many bytes of JSON."""
BATCH_CELLS = 5_000_000
"""Nor has a batch more rows times fields than this, if it has more than a page."""
MAX_CELLS = 20_000_000
"""A page whose records have so few fields in common is taken for one that has values as names."""
MAX_PAGE_BYTES = 32 << 20
"""Parsed, JSON takes up to ten times its size in memory."""
RETRY_AFTER_SECONDS = 60

Cursor: TypeAlias = str | int | float
Kind = Literal["page_number", "offset", "cursor", "link_header", "next_url", "single"]

_USUAL: dict[str, dict[str, str]] = {
    "page_number": {"param": "page", "size_param": "page_size", "total": "pages"},
    "offset": {"param": "offset", "size_param": "limit", "total": "total"},
    "cursor": {"param": "cursor", "next": "next"},
    "link_header": {"next": "next"},
    "next_url": {"next": "next"},
    "single": {},
}


@dataclass(frozen=True)
class Pagination:
    """How an API cuts its records into pages. Names not given are the usual ones of the kind.

    Attributes:
        kind: `page_number` and `offset` count; `cursor` hands on a text of the answer before;
            `link_header` and `next_url` follow a URL in the `Link` header or in the answer;
            `single` has one page.
        param: the query parameter: of the page number `page`, the offset `offset`, the cursor
            `cursor`.
        size_param: the query parameter of the page size: `page_size`, for an offset `limit`,
            otherwise none.
        size: how many records to ask for at a time, if there is a parameter for it.
        first: the number of the first page.
        total: JSON path of how many pages (`pages`) or, for an offset, records (`total`) there
            are; "" if the answer does not say: then an empty page is the end.
        next: JSON path of the next cursor or URL, or the relation in the header: `next`.
        has_more: JSON path of a boolean that says whether another page follows; "" is without.
    """

    kind: Kind = "page_number"
    param: str | None = None
    size_param: str | None = None
    size: int = 500
    first: int = 1
    total: str | None = None
    next: str | None = None
    has_more: str = ""

    def usual(self, name: Literal["param", "size_param", "total", "next"]) -> str:
        """The name that was given, or the usual one; "" if the kind has none."""
        given: str | None = getattr(self, name)
        return _USUAL[self.kind].get(name, "") if given is None else given


@dataclass(frozen=True)
class RestEndpoint:
    """An endpoint of a REST API.

    Attributes:
        base_url: `https://host:port`, with a prefix if need be.
        path: the endpoint, such as `/v1/mailings`.
        system: the source system's short name, for errors.
        table: what the endpoint's records are called in that system, for errors.
        url_setting: the setting that holds `base_url`, for errors.
        columns: the contract's fields; that none of them arrives is an error.
        ignore: fields to leave out.
        records: JSON path of the list of records in an answer; `$` is the answer itself.
        pagination: how they are cut into pages, here and in the list of partitions.
        token: the bearer token, if the API wants one.
        token_setting: the setting that holds `token`, for errors.
        oauth: OAuth2 client credentials, in place of `token`.
        fields: the fields to ask the API for, separated by commas; empty is all.
        fields_param: the query parameter for `fields`.
        params: further query parameters.
        partitions: where the published partitions are listed, such as `/v1/weeks?entity=mailings`.
        partition: what a partition is called: query parameter, field of the list, position.
        cursor: the records' field by which they grow, in place of partitions.
        start_param: the query parameter for the cursor's value to begin at.
        end_param: the query parameter for the value to end before, used to load a part again.
        since: the value to begin at the first time; "" sends none.
        overlap: how far before the last value to begin: a time, or a number if the cursor is one.
        max_page_bytes: an answer that is larger, once unpacked, is an error.
        retry_after_max: how many seconds to wait at most if the API asks for more.

    Raises:
        MendableError: the ways to read it contradict each other.
    """

    base_url: str = field(repr=False)
    path: str
    system: str
    table: str
    url_setting: str
    columns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    records: str = "data"
    pagination: Pagination = Pagination()
    token: str = field(default="", repr=False)
    token_setting: str = ""
    oauth: ClientCredentials | None = None
    fields: tuple[str, ...] = ()
    fields_param: str = "fields"
    params: Mapping[str, str] = field(default_factory=dict, repr=False)
    partitions: str = ""
    partition: str = ""
    cursor: str = ""
    start_param: str = ""
    end_param: str = ""
    since: str = ""
    overlap: timedelta | float = 0
    max_page_bytes: int = MAX_PAGE_BYTES
    retry_after_max: float = RETRY_AFTER_SECONDS

    def __post_init__(self) -> None:
        kind, size = self.pagination.kind, self.pagination.size
        for is_right, expected, arrived in (
            (kind in _USUAL, f"one of the paginations {', '.join(_USUAL)}", str(kind)),
            (size >= 1, "a page size of at least 1", str(size)),
            (bool(self.partitions) == bool(self.partition), "partitions with partition", "one"),
            (bool(self.cursor) == bool(self.start_param), "cursor with start_param", "one"),
            (not (self.partition and self.cursor), "partitions or cursor", "both"),
            (self.partition not in ("listed", "resume"), "another name", self.partition),
            (not (self.token and self.oauth), "token or oauth", "both"),
        ):
            if not is_right:
                raise description_error(self, expected, arrived)


def read(
    endpoint: RestEndpoint,
    position: Position,
    span: Span | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Batch]:
    """Read what came after `position`, several pages to a batch.

    Args:
        endpoint: the endpoint.
        position: where the last read ended; `{}` to begin.
        span: the partitions whose names lie in it, or the range of the cursor, as the API takes
            its parameters: one without `end_param` gives everything from the start on.
        batch_rows: a batch ends with the page that reaches this many rows.

    Raises:
        SourceUnavailableError: the API does not answer, or still not as it should after retries.
        MendableError: it refuses the token, or what it sends is not what it promised; or a span
            is asked of an endpoint that is read whole.
    """
    with Api(endpoint) as api:
        if endpoint.partitions:
            yield from _batches(
                api, _partition_walks(api, position, span), position, span, batch_rows
            )
        elif endpoint.cursor:
            walk = _range_walk(endpoint, position, span)
            yield from _batches(api, [walk], position, span, batch_rows)
        elif span is None:
            yield from _whole(api, position, batch_rows)
        else:
            raise description_error(
                endpoint, "partitions or a cursor, to load a part again", "an endpoint read whole"
            )


@dataclass(frozen=True)
class _Walk:
    """All pages of a partition or a range: where it is, how to ask, which position it leads to."""

    where: str
    params: dict[str, str]
    before: Position
    after: Callable[[Cursor | None], Position]


def _partition_walks(api: Api, position: Position, span: Span | None) -> Iterator[_Walk]:
    endpoint = api.endpoint
    listing = api.pages(endpoint.partitions, {}, {}, "the list of partitions")
    names = sorted({_name(endpoint, record) for page in listing for record in page.records})
    done = position.get(endpoint.partition, "")
    known = [name for name in names if name <= done]
    if span is not None:
        todo = [name for name in names if _lies_in(name, span)]
    elif len(known) > position.get("listed", len(known)):
        todo = names
    else:
        todo = names[len(known) :]
    stands = _without_resume(position)
    for name in todo:
        before = stands
        if name > done or name == known[-1]:
            last = max(name, done)
            stands = {endpoint.partition: last, "listed": sum(other <= last for other in names)}
        where = f"{endpoint.partition} {name}"
        yield _Walk(where, {endpoint.partition: name}, before, partial(_ignoring, stands))


def _ignoring(position: Position, _: Cursor | None) -> Position:
    return position


def _range_walk(endpoint: RestEndpoint, position: Position, span: Span | None) -> _Walk:
    before, known = _without_resume(position), position.get("cursor")
    start: Cursor | None = endpoint.since or None
    params = {}
    if span is not None:
        start = span.start
        if span.end is not None and endpoint.end_param:
            params[endpoint.end_param] = span.end
    elif known is not None:
        start = _earlier(endpoint, known) if endpoint.overlap else known
    if start is not None:
        params[endpoint.start_param] = str(start)

    def after(largest: Cursor | None) -> Position:
        if largest is None:
            return before
        return {"cursor": largest if known is None else _larger(endpoint, known, largest)}

    where = endpoint.cursor + (" from the beginning" if start is None else f" from {start}")
    return _Walk(where, params, before, after)


def _batches(
    api: Api, walks: Iterable[_Walk], position: Position, span: Span | None, batch_rows: int
) -> Iterator[Batch]:
    """The pages of the walks, several to a batch; when one does not arrive, those that did."""
    endpoint, held = api.endpoint, _Held(api.endpoint)

    def batch() -> Batch:
        return held.batch(held.pages[-1].position() if span is None else position)

    try:
        for walk in walks:
            resume = position.get("resume", {}) if span is None else {}
            if (resume.get("of"), resume.get("by")) != (walk.where, endpoint.pagination.kind):
                resume = {}
            largest, arrived = resume.get("largest"), 0
            for page in api.pages(endpoint.path, walk.params, resume, walk.where):
                if held.is_full(batch_rows):
                    yield batch()
                    held = _Held(endpoint)
                if endpoint.cursor:
                    largest = _largest(endpoint, page.records, largest)
                arrived += len(page.records)
                page.position = partial(_midway, endpoint, walk, page.resume, largest)
                held.add(page)
            if endpoint.cursor and arrived and largest is None:
                raise answer_error(
                    endpoint, endpoint.path, f"records of which none has a {endpoint.cursor}"
                )
            held.pages[-1].position = partial(walk.after, largest)
    except MendableError:
        if held.rows:
            yield batch()
        raise
    if held.pages:
        last = batch()
        if held.rows or last.position != position:
            yield last


def _midway(
    endpoint: RestEndpoint,
    walk: _Walk,
    resume: Callable[[], Position] | None,
    largest: Cursor | None,
) -> Position:
    """The position in the middle of a walk, once the page has landed after which it may resume."""
    if resume is None:
        return walk.before
    place = {"of": walk.where, "by": endpoint.pagination.kind, **resume()}
    if largest is not None:
        place["largest"] = largest
    return {**walk.before, "resume": place}


def _whole(api: Api, position: Position, batch_rows: int) -> Iterator[Batch]:
    """All records, if they changed; what is more than a batch waits on disk until that is known."""
    endpoint, where = api.endpoint, f"all of {api.endpoint.path}"
    with tempfile.TemporaryDirectory() as folder:
        for page in api.pages(endpoint.path, {}, {}, where):
            if page.is_first:
                fingerprint = rows = 0
                held, spooled = _Held(endpoint), list[Callable[[], Batch]]()
            elif held.is_full(batch_rows):
                spooled.append(_spool(held.batch({}), Path(folder) / str(len(spooled))))
                held = _Held(endpoint)
            held.add(page)
            rows += len(page.records) + len(page.rejected)
            fingerprint += _fingerprint(endpoint, page)
        arrived = {"fingerprint": f"{fingerprint % (1 << 128):032x}", "rows": rows}
        if arrived == position:
            yield Batch(pa.table({}), position, where, unchanged_rows=rows)
            return
        spooled.append(partial(held.batch, {}))
        for number, load in enumerate(spooled, 1):
            batch = load()
            yield Batch(
                batch.rows,
                arrived,
                where,
                rejected=batch.rejected,
                replaces=Whole.TABLE if number == 1 else (),
                completes=number == len(spooled),
            )


def _spool(batch: Batch, path: Path) -> Callable[[], Batch]:
    """Put a batch's tables on disk; gives what brings them back."""
    tables = [batch.rows] if batch.rejected is None else [batch.rows, batch.rejected]
    files = [f"{path}.{number}" for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def load() -> Batch:
        return Batch(_load(files[0]), {}, rejected=next(map(_load, files[1:]), None))

    return load


def _load(file: str) -> pa.Table:
    with pa.OSFile(file, "rb") as source:
        return pa.ipc.open_file(source).read_all()


def _fingerprint(endpoint: RestEndpoint, page: Page) -> int:
    """The sum of the records' hashes, so that their order does not count."""
    ignore = set(endpoint.ignore)
    records: Iterable[dict[str, Any]] = page.records
    if ignore:
        records = ({n: v for n, v in record.items() if n not in ignore} for record in records)
    texts = (exact_json.dumps(record, sort_keys=True) for record in records)
    refused = (raw or b"" for _, raw, _ in page.rejected)
    return sum(
        int.from_bytes(blake2b(text, digest_size=16).digest(), "big")
        for text in chain(texts, refused)
    )


class _Held:
    """Pages that will be a batch."""

    def __init__(self, endpoint: RestEndpoint) -> None:
        self._endpoint = endpoint
        self.pages: list[Page] = []
        self.rows = self._size = 0
        self._names: set[str] = set()

    def add(self, page: Page) -> None:
        self.pages.append(page)
        self.rows += len(page.records) + len(page.rejected)
        self._size += page.size
        self._names.update(*page.records)

    def is_full(self, batch_rows: int) -> bool:
        cells = self.rows * len(self._names)
        return self.rows >= batch_rows or self._size >= BATCH_BYTES or cells >= BATCH_CELLS

    def batch(self, position: Position) -> Batch:
        endpoint, first, last = self._endpoint, self.pages[0].where, self.pages[-1].where
        if self.rows * len(self._names) > MAX_CELLS:
            many = f"{self.rows:,} records with {len(self._names):,} different fields"
            raise answer_error(endpoint, endpoint.path, many)
        rows = exact_json.table(
            [record for page in self.pages for record in page.records],
            ignore=(*endpoint.ignore, SOURCE_POSITION),
        )
        names = rows.column_names
        if names and endpoint.columns and not {*names} & {*endpoint.columns}:
            require_columns(
                endpoint.system, endpoint.table, expected=endpoint.columns, arrived=names
            )
        places = [place for page in self.pages for place in [page.where] * len(page.records)]
        refused = [refusal for page in self.pages for refusal in page.rejected]
        return Batch(
            pa.table(
                [*rows.columns, pa.array(places, pa.string())], names=[*names, SOURCE_POSITION]
            ),
            position,
            first
            if first == last
            else f"{first} to {last.removeprefix(endpoint.partition).strip()}",
            rejected=rejected_rows(*zip(*refused, strict=True)) if refused else None,
        )


def _name(endpoint: RestEndpoint, record: dict[str, Any]) -> str:
    name = record.get(endpoint.partition)
    if not isinstance(name, str):
        raise answer_error(
            endpoint,
            endpoint.partitions,
            f"a record without a text named {endpoint.partition}; it has {field_names(record)}",
        )
    return name


def _lies_in(name: str, span: Span) -> bool:
    return (span.start is None or span.start <= name) and (span.end is None or name < span.end)


def _without_resume(position: Position) -> Position:
    return {name: value for name, value in position.items() if name != "resume"}


def _largest(
    endpoint: RestEndpoint, records: list[dict[str, Any]], largest: Cursor | None
) -> Cursor | None:
    """The largest cursor value so far.

    Texts are compared as texts: among times written in several ways, one that is not the latest
    may win. None is later than the latest, so that records may be read again but not passed over.
    """
    found = [v for record in records if (v := record.get(endpoint.cursor)) is not None]
    if not found:
        return largest
    kinds = set(map(type, found))
    if not (kinds <= {str} or kinds <= {int, float}):
        raise _cursor_error(endpoint)
    return max(found) if largest is None else _larger(endpoint, largest, max(found))


def _larger(endpoint: RestEndpoint, one: Any, other: Any) -> Cursor:
    if isinstance(one, str) != isinstance(other, str):
        raise _cursor_error(endpoint)
    larger: Cursor = max(one, other)
    return larger


def _earlier(endpoint: RestEndpoint, cursor: Cursor) -> Cursor:
    """The cursor less the overlap, written as it was."""
    overlap = endpoint.overlap
    if not isinstance(cursor, str) and not isinstance(overlap, timedelta):
        return cursor - overlap
    try:
        if not isinstance(cursor, str) or not isinstance(overlap, timedelta):
            raise TypeError
        moment = datetime.fromisoformat(cursor) - overlap
    except (TypeError, ValueError, OverflowError):
        raise description_error(
            endpoint,
            "an overlap that can be taken from the cursor: a time from times, a number from numbers",
            f"one that cannot be taken from the last {endpoint.cursor}",
        ) from None
    if len(cursor) == len("2020-01-31"):
        return moment.date().isoformat()
    text = moment.isoformat(cursor[10], "microseconds" if moment.microsecond else "seconds")
    return text.removesuffix("+00:00") + "Z" if cursor.endswith("Z") else text


def _cursor_error(endpoint: RestEndpoint) -> MendableError:
    return answer_error(
        endpoint, endpoint.path, f"records whose {endpoint.cursor} is not always text, or a number"
    )
