"""Reads JSON records from REST APIs that publish them in partitions, such as weeks, page by page.

What it takes for granted of an API:

- a bearer token in the `Authorization` header;
- `GET <partitions>` lists the partitions that have been published, each a record that holds its
  name under `<partition>`, such as `{"week": "2017-05-08"}`; names sort in order of publication,
  and a published partition never changes;
- `GET <path>?<partition>=<name>&page=<1, 2, ...>&page_size=<n>` gives a partition's records;
- every answer is `{"data": [<record>, ...], "pages": <how many>}`.

Position: `{"<partition>": "<name of the last partition read completely>"}`. Requests that are cut
off, time out, or meet 429 or 5xx are repeated by urllib3, which waits as `Retry-After` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import Retry
from urllib3.exceptions import MaxRetryError, ProtocolError

from orchestration.connectors import Batch, Position, address, unexpected_columns
from orchestration.errors import MendableError, SourceUnavailableError

BATCH_ROWS = 5_000
PAGE_SIZE = 500
TIMEOUT_SECONDS = (3.05, 30)
"""How long to wait for a connection, and for the next bytes of an answer."""
RETRIES = Retry(
    total=5,
    connect=1,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("GET",),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=10,
    retry_after_max=60,
    raise_on_status=False,
)

_MALFORMED_URL = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


@dataclass(frozen=True)
class RestEndpoint:
    """An endpoint of a REST API.

    Attributes:
        base_url: `https://host:port`, with a prefix if need be.
        path: the endpoint, such as `/v1/mailings`.
        columns: the fields of a record to read, in this order.
        partitions: where the published partitions are listed, such as `/v1/weeks?entity=mailings`.
        partition: what a partition is called: query parameter, field of the listing, position.
        token: the bearer token.
        system: the source system's short name, for errors.
        table: what the endpoint's records are called in that system, for errors.
        url_setting: the setting that holds `base_url`, for errors.
        token_setting: the setting that holds `token`, for errors.
    """

    base_url: str = field(repr=False)
    path: str
    columns: tuple[str, ...]
    partitions: str
    partition: str
    token: str = field(repr=False)
    system: str
    table: str
    url_setting: str
    token_setting: str


def read(
    endpoint: RestEndpoint, position: Position, *, batch_rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Read the partitions published after `position`, whole ones only, several to a batch.

    Args:
        endpoint: the endpoint.
        position: where the last read ended; `{}` to begin.
        batch_rows: a batch ends with the partition that reaches this many rows.

    Raises:
        SourceUnavailableError: the API does not answer, or still not as it should after retries.
        MendableError: it refuses the token, or what it sends is not what it promised.
    """
    with _session(endpoint) as session:
        listing = _records(session, endpoint, endpoint.partitions, {})
        names = sorted({_name(endpoint, record) for record in listing})
        new = [name for name in names if name > position.get(endpoint.partition, "")]
        held: list[dict[str, Any]] = []
        for name in new:
            held += _records(session, endpoint, endpoint.path, {endpoint.partition: name})
            if len(held) >= batch_rows or name == new[-1]:
                rows, unexpected = _table(endpoint, held)
                yield Batch(rows, {endpoint.partition: name}, unexpected_columns=unexpected)
                held = []


class _Bearer(AuthBase):
    """Sends the token with every request, whatever ~/.netrc says about the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _session(endpoint: RestEndpoint) -> requests.Session:
    if not (endpoint.token.isascii() and endpoint.token.isprintable()):
        raise _token_error(endpoint, "a token with characters that no request can carry")
    session = requests.Session()
    session.auth = _Bearer(endpoint.token)
    session.headers["Accept"] = "application/json"
    session.trust_env = not _is_loopback(endpoint.base_url)
    for prefix in ("http://", "https://"):
        session.mount(prefix, HTTPAdapter(max_retries=RETRIES))
    return session


def _is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, so that no proxy may come between."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _records(
    session: requests.Session, endpoint: RestEndpoint, path: str, query: dict[str, str]
) -> list[dict[str, Any]]:
    """The records of all pages."""
    found: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    page = last_page = 1
    while page <= last_page:
        body = _get(
            session, endpoint, path, query | {"page": str(page), "page_size": str(PAGE_SIZE)}
        )
        records, pages = body.get("data"), body.get("pages")
        if (
            not isinstance(records, list)
            or not all(isinstance(record, dict) for record in records)
            or not isinstance(pages, int)
        ):
            raise _answer_error(
                endpoint, path, f"JSON with the fields {', '.join(body) or '(none)'}"
            )
        last_page = pages
        if page > 1 and (not records or records == before):
            raise _answer_error(
                endpoint,
                path,
                f"page {page} of {last_page} {'repeats the one before' if records else 'is empty'}",
            )
        found += records
        before = records
        page += 1
    return found


def _get(
    session: requests.Session, endpoint: RestEndpoint, path: str, query: dict[str, str]
) -> dict[str, Any]:
    """The JSON object that one request is answered with."""
    response = _answer(session, endpoint, path, query)
    if response.status_code in (401, 403):
        raise _token_error(
            endpoint, "a token that the API refuses" if endpoint.token else "no token"
        )
    if response.status_code == 429 or response.status_code >= 500:
        raise _unavailable(endpoint, f"HTTP {response.status_code}, after {RETRIES.total} retries")
    if not response.ok:
        raise _answer_error(endpoint, path, f"HTTP {response.status_code}")
    try:
        body = response.json()
    except requests.JSONDecodeError:
        kind = response.headers.get("Content-Type", "no content type")
        raise _answer_error(endpoint, path, f"{len(response.content)} bytes of {kind}") from None
    if not isinstance(body, dict):
        raise _answer_error(endpoint, path, f"a JSON {type(body).__name__}")
    return body


def _answer(
    session: requests.Session, endpoint: RestEndpoint, path: str, query: dict[str, str]
) -> requests.Response:
    retries = RETRIES
    url = endpoint.base_url.rstrip("/") + path
    try:
        while True:
            try:
                return session.get(url, params=query, timeout=TIMEOUT_SECONDS)
            except requests.exceptions.ChunkedEncodingError:
                # Cut off inside the body, which requests reads after urllib3 has stopped retrying.
                retries = retries.increment("GET", url, error=ProtocolError("cut off"))
                retries.sleep()
    except _MALFORMED_URL:
        raise MendableError(
            f"setting {endpoint.url_setting}",
            expected="a base URL such as https://host:port",
            arrived="a URL of another form",
            mend=f"change {endpoint.url_setting} in the environment or in .env; see .env.example",
        ) from None
    except requests.ConnectTimeout:
        raise _unavailable(endpoint, f"no answer within {TIMEOUT_SECONDS[0]:.0f} s") from None
    except (requests.RequestException, MaxRetryError) as error:
        refused = "refused" in str(error)
        raise _unavailable(
            endpoint,
            "nothing listens there" if refused else f"a broken connection ({type(error).__name__})",
        ) from None


def _name(endpoint: RestEndpoint, record: dict[str, Any]) -> str:
    name = record.get(endpoint.partition)
    if not isinstance(name, str):
        raise _answer_error(
            endpoint,
            endpoint.partitions,
            f"a record without a text named {endpoint.partition}; it has {', '.join(record)}",
        )
    return name


def _table(
    endpoint: RestEndpoint, records: list[dict[str, Any]]
) -> tuple[pa.Table, tuple[str, ...]]:
    """The records' columns, and the fields that were not asked for."""
    unexpected: tuple[str, ...] = ()
    if records:
        unexpected = unexpected_columns(
            endpoint.system,
            endpoint.table,
            expected=endpoint.columns,
            arrived=dict.fromkeys(name for record in records for name in record),
        )
    columns = {name: _column([record.get(name) for record in records]) for name in endpoint.columns}
    return pa.table(columns), unexpected


def _column(values: list[Any]) -> pa.Array:
    """JSON values as an Arrow array; values of several types as text, so that none is lost."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()
        )


def _unavailable(endpoint: RestEndpoint, arrived: str) -> SourceUnavailableError:
    return SourceUnavailableError(
        f"{endpoint.system}.{endpoint.table} (API at {address(endpoint.base_url)})",
        expected="an API that answers",
        arrived=arrived,
        mend="make ui or make demo starts the demo's API;"
        f" for another, set {endpoint.url_setting} in .env; then run again",
    )


def _answer_error(endpoint: RestEndpoint, path: str, arrived: str) -> MendableError:
    return MendableError(
        f"{endpoint.system}.{endpoint.table} (GET {path} at {address(endpoint.base_url)})",
        expected='a JSON object {"data": [<record>, ...], "pages": <how many>}',
        arrived=arrived,
        mend=f"check that {endpoint.url_setting} is the API's base URL, or ask who runs it",
    )


def _token_error(endpoint: RestEndpoint, arrived: str) -> MendableError:
    return MendableError(
        f"setting {endpoint.token_setting}",
        expected=f"the bearer token of the API at {address(endpoint.base_url)}",
        arrived=arrived,
        mend=f"set {endpoint.token_setting} in the environment or in .env",
    )
