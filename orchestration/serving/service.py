"""The service: `watershed serve`, scores over HTTP with a token, limits, health and metrics.

**Bad input** never costs a good record its score: each is checked by itself, and what is wrong with one is
said by its position and field. **A flood**: so many requests are let in at once, the others are told to
come again (429), so that those inside stay fast. Large requests wait for each other in a lane of their
own and are scored in a thread; small ones are scored at once, between two turns of the event loop.

Nothing of a request is logged: neither its body nor its address.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, Field, ValidationError

from orchestration.errors import MendableError
from orchestration.serving.use_cases import BASELINE, Unfit, UseCase, opened
from orchestration.settings import Settings, variable

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_RECORDS: Final = 1_000
MOST_BYTES: Final = 4 * 1024 * 1024
SMALL_BYTES: Final = 8 * 1024
"""A request up to here is scored at once."""
MOST_SMALL: Final = 32
"""Small requests inside at once: of a third of a millisecond each, the last waits about ten."""
MOST_LARGE: Final = 4
BODY_SECONDS: Final = 10.0
MOST_CONNECTIONS: Final = 1_000
_MOST_PROBLEMS = 10
_BUCKETS = (0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_TOO_MANY = "too many requests at once"
_COME_AGAIN = {"Retry-After": "1"}

Reasons = Literal["alerts", "all"]
_BEARER = HTTPBearer(auto_error=False)


class Rejected(BaseModel):
    """A record that was not scored."""

    position: int = Field(description="Its place in the request, from 0.")
    problems: list[dict[Literal["field", "problem"], str]]


class _Lane:
    """Lets so many requests in at once; all on the event loop's thread."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0

    @property
    def is_full(self) -> bool:
        """Whether the next is told to come again."""
        return self.inside >= self.most

    def __enter__(self) -> None:
        if self.is_full:
            raise HTTPException(429, _TOO_MANY, _COME_AGAIN)
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


class _Door:
    """Refuses a small request at once while their lane is full: a tenth of what it costs further in."""

    def __init__(self, app: ASGIApp, small: _Lane, refused: Callable[[str], None]) -> None:
        self.app, self.small, self.refused = app, small, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and self.small.is_full:
            length = dict(scope["headers"]).get(b"content-length", b"")
            if length.isdigit() and int(length) <= SMALL_BYTES:
                self.refused(scope["path"])
                response = Response(
                    orjson.dumps({"detail": _TOO_MANY}), 429, _COME_AGAIN, "application/json"
                )
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class _Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        name, labels = "watershed_serving", ["use_case"]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{name}_requests", "Requests answered", [*labels, "status"], registry=self.registry
        )
        self.records = Counter(
            f"{name}_records", "Records by what became of them", [*labels, "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            f"{name}_seconds", "From a request's arrival to its answer", labels,
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.champion = Gauge(
            f"{name}_champion", "1: a champion answers, 0: the baseline rule", [*labels, "kind"],
            registry=self.registry,
        )  # fmt: skip


def create_app(use_cases: Mapping[str, UseCase[Any]], token: str = "") -> FastAPI:
    """The service as an ASGI application.

    Args:
        use_cases: by name.
        token: what callers must show as a bearer; empty: nothing.
    """
    app = FastAPI(
        title="Watershed's scores",
        description=f"At most {MOST_RECORDS:,} records and {MOST_BYTES // 1024**2} MiB a request.",
        version="1",
        docs_url=None,  # these two load scripts from elsewhere
        redoc_url=None,
    )
    metrics = _Metrics()
    small, large = _Lane(MOST_SMALL), _Lane(MOST_LARGE)
    thread = ThreadPoolExecutor(1, "large requests")
    paths = {f"/v1/{name}/scores": name for name in use_cases}

    def refused(path: str) -> None:
        metrics.requests.labels(paths.get(path, ""), 429).inc()

    app.add_middleware(_Door, small=small, refused=refused)

    async def authorised(
        shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        given = shown.credentials if shown else ""
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(
                401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"}
            )

    async def answer(
        name: str, use_case: UseCase[Any], request: Request, all_reasons: bool
    ) -> Response:
        body = await _body(request)
        with small if len(body) <= SMALL_BYTES else large as _:
            await asyncio.sleep(
                0
            )  # whoever came in the same turn is let in, or not, before the work
            if len(body) <= SMALL_BYTES:
                told, counts = _answered(use_case, body, all_reasons)
            else:
                told, counts = await asyncio.get_running_loop().run_in_executor(
                    thread, _answered, use_case, body, all_reasons
                )
        for outcome, number in counts.items():
            metrics.records.labels(name, outcome).inc(number)
        status = 200 if counts["scored"] else 422
        return Response(told, status, media_type="application/json")

    def add(name: str, use_case: UseCase[Any]) -> None:
        seconds = metrics.seconds.labels(name)

        async def scores(
            request: Request,
            reasons: Annotated[
                Reasons, Query(description="For alerts alone, or for all, which takes longer.")
            ] = "alerts",
        ) -> Response:
            started, status = time.perf_counter(), 500
            try:
                response = await answer(name, use_case, request, reasons == "all")
                status = response.status_code
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                seconds.observe(time.perf_counter() - started)
                metrics.requests.labels(name, status).inc()
            return response

        app.add_api_route(
            f"/v1/{name}/scores",
            scores,
            methods=["POST"],
            summary=(use_case.answer.__doc__ or "").rstrip("."),
            description="Records that cannot be scored are in `rejected`; the others are scored all the"
            " same. 422: none could be.",
            dependencies=[Depends(authorised)],
            response_class=Response,
            operation_id=f"score_{name}",
            responses=_documented(use_case),
            openapi_extra={"requestBody": _expected(use_case)},
        )

    @app.get("/", summary="Where to look")
    async def index() -> dict[str, str]:
        return {
            **{name: f"POST /v1/{name}/scores" for name in use_cases},
            "description": "GET /openapi.json",
            "health": "GET /health",
            "metrics": "GET /metrics",
        }

    @app.get("/health", summary="Which models answer; degraded while a baseline rule stands in")
    async def health() -> dict[str, Any]:
        models = [
            _model_of(name, kind, use_case.champion(kind))
            for name, use_case in use_cases.items()
            for kind in sorted(use_case.kinds())
        ]
        ready = bool(models) and all(model["is_champion"] for model in models)
        return {"status": "ok" if ready else "degraded", "models": models}

    @app.get("/metrics", summary="For Prometheus", dependencies=[Depends(authorised)])
    async def measured() -> Response:
        for name, use_case in use_cases.items():
            for kind in use_case.kinds():
                version = use_case.champion(kind).version
                metrics.champion.labels(name, kind).set(version != BASELINE)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    for name, use_case in use_cases.items():
        add(name, use_case)
    return app


async def _body(request: Request) -> bytes:
    """What was sent, once all of it is here."""
    # A page in a browser may send text to this machine unasked, but not JSON.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the content type must be application/json")
    too_large = HTTPException(413, f"more than {MOST_BYTES:,} bytes")
    if int(request.headers.get("content-length") or 0) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"not all there after {BODY_SECONDS:g} s") from None
    return bytes(body)


def _answered(
    use_case: UseCase[Any], body: bytes, all_reasons: bool
) -> tuple[bytes, dict[str, int]]:
    """The answer as JSON, and how many records were scored, rejected, and alerts."""
    records = _records(body)
    fit: list[tuple[int, BaseModel]] = []
    rejected: list[dict[str, Any]] = []
    for position, record in enumerate(records):
        try:
            fit.append((position, use_case.record.model_validate(record)))
        except ValidationError as error:
            rejected.append({"position": position, "problems": _problems(error)})
    results: list[dict[str, Any]] = []
    if fit:
        answers = use_case.answers([record for _, record in fit], all_reasons=all_reasons)
        for (position, _), answer in zip(fit, answers, strict=True):
            if isinstance(answer, Unfit):
                rejected.append({"position": position, "problems": [answer._asdict()]})
            else:
                results.append({"position": position, **answer})
    counts = {
        "scored": len(results),
        "rejected": len(rejected),
        "alerts": sum(result.get("is_alert", False) for result in results),
    }
    rejected.sort(key=lambda one: int(one["position"]))
    return orjson.dumps({"results": results, "rejected": rejected}), counts


def _records(body: bytes) -> list[Any]:
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"no JSON: {error.msg} at character {error.pos}") from None
    records = sent.get("records") if isinstance(sent, dict) else None
    if not isinstance(records, list) or not records:
        raise HTTPException(400, 'expected {"records": [{...}, ...]}, at least one')
    if len(records) > MOST_RECORDS:
        raise HTTPException(413, f"{len(records):,} records; at most {MOST_RECORDS:,} at once")
    return records


def _problems(error: ValidationError) -> list[dict[str, str]]:
    """Fields and what is wrong with them, without the values."""
    return [
        {"field": ".".join(map(str, one["loc"]))[:200], "problem": one["msg"]}
        for one in error.errors(include_input=False, include_url=False, include_context=False)
    ][:_MOST_PROBLEMS]


def _model_of(use_case: str, kind: str, model: Any) -> dict[str, Any]:
    as_of_at: datetime | None = getattr(model, "as_of_at", None)
    now = datetime.now(UTC).replace(tzinfo=None)
    return {
        "use_case": use_case,
        "kind": kind,
        "model_version": model.version,
        "is_champion": model.version != BASELINE,
        "as_of_at": as_of_at and as_of_at.isoformat(),
        "age_days": as_of_at and (now - as_of_at).days,
    }


def _expected(use_case: UseCase[Any]) -> dict[str, Any]:
    """The request's body, for OpenAPI."""
    records = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_RECORDS,
        "items": use_case.record.model_json_schema(),
    }
    schema = {"type": "object", "required": ["records"], "properties": {"records": records}}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _documented(use_case: UseCase[Any]) -> dict[int | str, dict[str, Any]]:
    """The answers, for OpenAPI."""
    schema = {
        "type": "object",
        "properties": {
            "results": {"type": "array", "items": use_case.answer.model_json_schema()},
            "rejected": {"type": "array", "items": Rejected.model_json_schema()},
        },
    }
    told = {
        400: "No JSON, or no list of records.",
        401: "No token, or another one.",
        408: "The body did not come in time.",
        413: "More records or bytes than one request may hold.",
        415: "The content type is not application/json.",
        422: "No record could be scored; `rejected` says why.",
        429: "Too many requests at once: come again after `Retry-After` seconds.",
    }
    return {
        200: {"description": "Scores.", "content": {"application/json": {"schema": schema}}},
        **{status: {"description": text} for status, text in told.items()},
    }


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Raises:
        MendableError: the port is taken, or others could reach it without a token.
    """
    host, port = settings.serving_host, settings.serving_port
    token = settings.serving_token.get_secret_value()
    if not token and not _is_loopback(host):
        raise MendableError(
            f"serving on {host}",
            expected="a token, since others can reach this address",
            arrived="none",
            mend=f"set {variable('serving_token')} in .env, or {variable('serving_host')}=127.0.0.1",
        )
    with _listening(host, port) as listener, opened(settings, say) as use_cases:
        server = prepared(create_app(use_cases, token))
        say(f"scores on http://{host}:{port} (stop with Ctrl-C)")
        server.run(sockets=[listener])


def prepared(app: FastAPI) -> uvicorn.Server:
    """The server of the application, with the process made ready for it."""
    import uvicorn

    sys.setswitchinterval(0.001)  # a large request in its thread gives way to small ones sooner
    gc.collect()
    gc.freeze()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=75,  # longer than a proxy keeps a connection that is idle
            timeout_graceful_shutdown=5,
        )
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise MendableError(
            f"serving on {host}:{port}",
            expected="a free port of this machine",
            arrived=str(error.strerror),
            mend=f"set {variable('serving_port')} in .env, or stop what listens there",
        ) from None
