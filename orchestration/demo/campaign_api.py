"""The stand-in for the marketing agency's API: an HTTP service that publishes a week at a time."""

from __future__ import annotations

import math
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestration.demo.dataset import last_household, reading
from orchestration.duckdb_session import open_session
from orchestration.errors import MendableError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Weeks = dict[str, list[dict[str, Any]]]
"""The records that were published together, by the Monday their week began on."""

REQUESTS_AT_ONCE = 100
REQUESTS_PER_SECOND = 50.0
"""A client may send so many requests at once, and so many a second after that; then it meets 429."""
MAX_PAGE_SIZE = 1_000
START_SECONDS = 10

_FILES = ("campaign_descriptions", "campaigns", "coupon_redemptions")
# A campaign and its mailings belong to the week in which the campaign starts.
_QUERIES = {
    "campaigns": """
        select
            start_date as day, campaign_id, campaign_type,
            cast(cast(start_date as date) as varchar) as start_date,
            cast(cast(end_date as date) as varchar) as end_date
        from campaign_descriptions
        """,
    "mailings": """
        select c.start_date as day, m.campaign_id, m.household_id
        from campaigns as m
        inner join campaign_descriptions as c on c.campaign_id = m.campaign_id
        where m.household_id <= $last_household
        """,
    "redemptions": """
        select
            redemption_date as day, household_id, coupon_upc, campaign_id,
            cast(cast(redemption_date as date) as varchar) as redemption_date
        from coupon_redemptions
        where household_id <= $last_household
        """,
}


def create_app(token: str, households: int | None = None) -> Starlette:
    """The service.

    - `GET /v1/<entity>/weeks` lists the weeks that have records: `{"week": <Monday>, "records": n}`.
    - `GET /v1/<entity>?week=<Monday>` gives a week's records, in an order that never changes.
    - `GET /health` says which service this is, to anyone.

    Lists come as `{"data": [...], "pages": n}` and take `page` (from 1) and `page_size`.

    Args:
        token: the bearer token that every request but `/health` must carry.
        households: serve only the first so many households' records; None is all.

    Raises:
        MendableError: the demo's data is missing or damaged.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    published = _published(households)
    allowance = _Allowance(REQUESTS_AT_ONCE, REQUESTS_PER_SECOND)
    expected = f"Bearer {token}".encode()

    def error(status: int, text: str, **headers: str) -> Response:
        return JSONResponse({"error": text}, status, headers)

    def refusal(request: Request) -> Response | None:
        sent = request.headers.get("Authorization", "").encode()
        if not token or not secrets.compare_digest(sent, expected):
            return error(401, "a valid bearer token is needed", **{"WWW-Authenticate": "Bearer"})
        wait = allowance.take()
        if wait:
            return error(429, "too many requests", **{"Retry-After": str(math.ceil(wait))})
        if request.path_params["entity"] not in published:
            return error(404, f"there are {', '.join(published)}")
        return None

    def page_of(records: list[dict[str, Any]], request: Request) -> Response:
        try:
            page = int(request.query_params.get("page", 1))
            size = int(request.query_params.get("page_size", MAX_PAGE_SIZE))
        except ValueError:
            return error(400, "page and page_size are whole numbers")
        if page < 1 or not 1 <= size <= MAX_PAGE_SIZE:
            return error(400, f"page is at least 1, page_size 1 to {MAX_PAGE_SIZE}")
        data = records[(page - 1) * size : page * size]
        return JSONResponse({"data": data, "pages": math.ceil(len(records) / size)})

    async def list_weeks(request: Request) -> Response:
        if refused := refusal(request):
            return refused
        weeks = published[request.path_params["entity"]]
        return page_of(
            [{"week": week, "records": len(records)} for week, records in weeks.items()], request
        )

    async def records_of_week(request: Request) -> Response:
        if refused := refusal(request):
            return refused
        weeks = published[request.path_params["entity"]]
        week = request.query_params.get("week", "")
        if week not in weeks:
            return error(400, "week is the Monday of a week in the list of weeks")
        return page_of(weeks[week], request)

    async def health(request: Request) -> Response:
        return JSONResponse({"service": "campaign_api"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/{entity}/weeks", list_weeks),
            Route("/v1/{entity}", records_of_week),
        ]
    )


@contextmanager
def running(url: str, token: str, households: int | None = None) -> Iterator[str]:
    """Serve at `url`, in a thread, as long as the block runs; if it is served already, use that.

    Args:
        url: `http://<host>:<port>`; port 0 is any free one.
        token: the bearer token.
        households: as in `create_app`.

    Yields:
        The URL with the port it is served at.

    Raises:
        MendableError: another program listens there, the service there has another token, or the
            demo's data is missing or damaged.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 0
    if port and _is_served(url, token):
        yield url
        return
    import uvicorn

    app = create_app(token, households)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise _not_ours(url, error.strerror or type(error).__name__) from None
    with listener:
        # Neither access log nor start-up lines: the terminal belongs to the command that runs.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.started and thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            if not server.started:
                raise _not_ours(url, f"a service that did not start within {START_SECONDS} s")
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


def _is_served(url: str, token: str) -> bool:
    """Whether the service already runs at `url`, with this token.

    Raises:
        MendableError: something else does.
    """
    import requests

    with requests.Session() as session:
        session.trust_env = False  # no proxy, no ~/.netrc
        try:
            health = session.get(f"{url}/health", timeout=2)
            ours = health.ok and health.json() == {"service": "campaign_api"}
            if ours:
                headers = {"Authorization": f"Bearer {token}"}
                weeks = session.get(f"{url}/v1/campaigns/weeks", headers=headers, timeout=2)
        except requests.ConnectionError:
            return False
        except requests.RequestException:
            ours = False
    if not ours:
        raise _not_ours(url, "another program listens there")
    if weeks.status_code == 401:
        raise _not_ours(url, "it runs already, with another WATERSHED_CAMPAIGN_API_TOKEN")
    return True


def _not_ours(url: str, arrived: str) -> MendableError:
    return MendableError(
        f"the demo's campaign API at {url}",
        expected="a free port, or the demo's campaign API",
        arrived=arrived,
        mend="stop what listens there, or set WATERSHED_CAMPAIGN_API_URL in .env",
    )


class _Allowance:
    """A token bucket: so many requests at once, and so many a second after that."""

    def __init__(
        self, at_once: int, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left, self._at_once, self._per_second = float(at_once), at_once, per_second
        self._clock, self._at = clock, clock()

    def take(self) -> float:
        """Take one request off the allowance: 0, or the seconds to wait when none is left."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._per_second
        self._left -= 1
        return 0.0


def _published(households: int | None) -> dict[str, Weeks]:
    """Entity to week to records; weeks and records in a stable order."""
    found: dict[str, Weeks] = {}
    with open_session(memory_limit="1GB") as connection:
        for name in _FILES:
            with reading(name) as parquet:
                connection.execute(f"create temp table {name} as select * from {parquet}")
        last = last_household(connection, households)
        for entity, query in _QUERIES.items():
            connection.execute(
                f"""
                select
                    cast(cast(date_trunc('week', day) as date) as varchar) as week,
                    * exclude (day),
                    strftime(date_trunc('week', day) + interval 7 days, '%Y-%m-%dT%H:%M:%SZ')
                        as published_at
                from ({query})
                order by all
                """,
                {"last_household": last} if "$last_household" in query else {},
            )
            _, *fields = [name for name, *_ in connection.description or []]
            weeks: Weeks = {}
            for week, *values in connection.fetchall():
                weeks.setdefault(week, []).append(dict(zip(fields, values, strict=True)))
            found[entity] = weeks
    return found
