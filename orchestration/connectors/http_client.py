"""HTTP for connectors: requests with bounded answers, urllib3's retries, OAuth2 by dlt, errors in words.

What passes is tried again with growing, jittered pauses or as long as `Retry-After` says: 429, 5xx,
time-outs and connections that are cut, in the body as well. Nothing else is. A token goes to the
address it is for, and no redirect takes it elsewhere.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.exceptions import InvalidProxyURL, InvalidSchema, InvalidURL, MissingSchema
from urllib3 import Retry
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from orchestration.connectors import address
from orchestration.errors import MendableError, SourceUnavailableError

TIMEOUT_SECONDS = (3.05, 30)
"""How long to wait for a connection, and for the next bytes of an answer."""
ANSWER_SECONDS = 300
"""How long an answer may take that never stops for that long."""
MAX_TOKEN_BYTES = 1 << 20
MAX_TOKEN_SECONDS = 86_400
RETRIED = frozenset({429, *range(500, 600)})


class _Retry(Retry):
    """urllib3's policy, which waits as it would by itself when `Retry-After` makes no sense."""

    def parse_retry_after(self, retry_after: str) -> float:
        text = retry_after.strip()
        if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text):
            text = str(round(float(text) + 0.5))
        try:
            return super().parse_retry_after(text)
        except (InvalidHeader, ValueError, OverflowError):
            return 0


RETRIES = _Retry(
    total=5,
    connect=2,
    allowed_methods=("GET",),
    backoff_factor=0.2,
    backoff_jitter=0.2,
    backoff_max=10,
)
"""How often to try again, and after which pause; a connection that is refused, twice."""


@dataclass(frozen=True)
class ClientCredentials:
    """OAuth2 client credentials, exchanged for a token that lasts a while.

    Attributes:
        token_url: where to get a token.
        client_id: the client's name.
        client_secret: its password.
        url_setting: the setting that holds `token_url`, for errors.
        id_setting: the setting that holds `client_id`, for errors.
        secret_setting: the setting that holds `client_secret`, for errors.
        scope: what the token shall be good for, if the service wants to know.
    """

    token_url: str = field(repr=False)
    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    url_setting: str
    id_setting: str
    secret_setting: str
    scope: str = ""


class Answer(requests.Response):
    """A response whose body has been read, within its bounds.

    Attributes:
        body: the body, unpacked, until whoever parsed it lets go of it.
        size: how many bytes it had.
        document: what `json()` gives, for whoever parsed the body to set.
        is_fit: whether all of the document may be used unseen, as `exact_json.parse` says.
    """

    body: bytes = b""
    size: int = 0
    document: Any = None
    is_fit: bool = True

    @property
    def content(self) -> bytes:
        """The body."""
        return self.body

    def json(self, **_: Any) -> Any:
        """The document."""
        return self.document

    @property
    def is_framed(self) -> bool:
        """Whether the connection could tell that the body is complete."""
        return bool(self.headers.keys() & {"content-length", "transfer-encoding"})


def session(
    url: str,
    *,
    max_bytes: int,
    retry_after_max: float,
    is_complete: Callable[[Answer], bool] = lambda answer: True,
) -> requests.Session:
    """A session whose answers are of class `Answer`, once they are no longer worth another try.

    Args:
        url: where it will send requests; on this machine, no proxy comes between.
        max_bytes: an answer that unpacks to more is an error.
        retry_after_max: seconds to wait at most, whatever `Retry-After` says.
        is_complete: whether an answer that is not framed has been read to its end.
    """
    adapter = _Adapter(RETRIES.new(retry_after_max=retry_after_max), max_bytes, is_complete)
    made = requests.Session()
    made.auth = lambda request: request  # what is in ~/.netrc is not for us
    made.headers["Accept"] = "application/json"
    made.trust_env = not _is_loopback(url)
    made.max_redirects = 10
    for prefix in ("http://", "https://"):
        made.mount(prefix, adapter)
    return made


def origin(url: str | None) -> tuple[str, str, int] | None:
    """Scheme, host and port of a URL; None if it is not one of HTTP."""
    try:
        parts = urlsplit(url or "")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    if port is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port


def require_url(url: str, setting: str) -> None:
    """Fail when a URL is not one of HTTP.

    Raises:
        MendableError: it names the setting.
    """
    if origin(url) is None or any(character.isspace() for character in url):
        raise MendableError(
            f"setting {setting}",
            expected="a URL such as https://host:port",
            arrived="a URL of another form",
            mend=f"change {setting} in the environment or in .env; see .env.example",
        )


def is_sendable(token: str) -> bool:
    """Whether a header can carry it."""
    return token.isascii() and token.isprintable()


def unavailable(thing: str, setting: str, arrived: str) -> SourceUnavailableError:
    """The error for a service that may answer later."""
    return SourceUnavailableError(
        thing,
        expected="an API that answers",
        arrived=arrived,
        mend="make ui or make demo starts the demo's API;"
        f" for another, set {setting} in .env; then run again",
    )


def refused_for_now(answer: requests.Response, retry_after_max: float) -> str:
    """What arrived, when an answer is still 429 or 5xx after all retries."""
    arrived = f"HTTP {answer.status_code}, after {RETRIES.total} retries"
    asked = RETRIES.new(retry_after_max=float("inf")).get_retry_after(answer.raw) or 0
    if asked > retry_after_max:
        arrived += (
            f"; Retry-After asks to wait {asked:,.0f} s, longer than the {retry_after_max:,.0f} s"
            " that a read waits"
        )
    return arrived


@contextmanager
def named_errors(thing: str, setting: str, max_bytes: int) -> Iterator[None]:
    """Replace what requests and urllib3 raise: their texts hold URLs.

    Raises:
        SourceUnavailableError: the service does not answer.
        MendableError: its certificate, its redirects or its answer are wrong.
    """
    try:
        yield
    except (requests.RequestException, HTTPError) as error:
        for kinds, expected, arrived in _LASTING:
            if isinstance(error, kinds):
                raise MendableError(
                    thing,
                    expected=expected.format(max_bytes=max_bytes),
                    arrived=arrived,
                    mend=f"check {setting} and how this source is described, or ask who runs the API",
                ) from None
        raise unavailable(thing, setting, _transport_fault(error)) from None


class Oauth(AuthBase):
    """Signs requests with a token got for client credentials, and with another when it has run out."""

    def __init__(self, credentials: ClientCredentials, thing: str, retry_after_max: float) -> None:
        from dlt.sources.helpers.rest_client.auth import OAuth2ClientCredentials

        require_url(credentials.token_url, credentials.url_setting)
        self._credentials = credentials
        self._thing = f"{thing} (token from {address(credentials.token_url)})"
        self._retry_after_max = retry_after_max
        self._session = session(
            credentials.token_url, max_bytes=MAX_TOKEN_BYTES, retry_after_max=retry_after_max
        )
        self._session.max_redirects = 0  # a redirect would take the secret along
        self._session.hooks["response"] = [self._check]
        self._tokens = OAuth2ClientCredentials(
            access_token_url=credentials.token_url,
            client_id=credentials.client_id,
            client_secret=credentials.client_secret,
            access_token_request_data={"scope": credentials.scope} if credentials.scope else {},
            session=self._session,
        )

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request, with a token got for it if need be."""
        with named_errors(self._thing, self._credentials.url_setting, MAX_TOKEN_BYTES):
            signed: requests.PreparedRequest = self._tokens(request)
            return signed

    def renew(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign with a new token, however long the old one was said to last."""
        self._tokens.access_token = None
        return self(request)

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def _check(self, answer: Any, *_: Any, **__: Any) -> None:
        held, status = self._credentials, answer.status_code
        if status in RETRIED:
            said = refused_for_now(answer, self._retry_after_max)
            raise unavailable(self._thing, held.url_setting, said)
        if status in (400, 401, 403):
            raise credentials_error(held, f"HTTP {status}: credentials that it refuses")
        if answer.is_redirect:
            return
        try:
            document = json.loads(answer.body)
            token = document["access_token"]
            seconds = document.get("expires_in")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            token = seconds = None
        if not answer.ok or not isinstance(token, str) or not token or not is_sendable(token):
            raise MendableError(
                self._thing,
                expected="JSON with an access_token",
                arrived=f"HTTP {status}, {len(answer.body):,} bytes without one",
                mend=f"check that {held.url_setting} is where this API gives out tokens",
            )
        answer.document = {"access_token": token}
        with suppress(TypeError, ValueError, OverflowError):  # dlt assumes an hour
            answer.document["expires_in"] = min(max(int(seconds), 0), MAX_TOKEN_SECONDS)


def credentials_error(held: ClientCredentials, arrived: str) -> MendableError:
    """The error for client credentials that are not good."""
    return MendableError(
        f"settings {held.id_setting} and {held.secret_setting}",
        expected=f"the client's name and secret at {address(held.token_url)}",
        arrived=arrived,
        mend=f"set {held.id_setting} and {held.secret_setting} in the environment or in .env",
    )


class _TooLargeError(requests.RequestException):
    pass


class _TooSlowError(requests.RequestException):
    pass


_LASTING: tuple[tuple[Any, str, str], ...] = (
    (_TooLargeError, "an answer of at most {max_bytes:,} bytes, once unpacked", "a larger one"),
    (requests.TooManyRedirects, "an answer", "redirects, more than may be followed"),
    (requests.exceptions.SSLError, "TLS with a certificate to trust", "none, or another"),
    (
        (DecodeError, requests.exceptions.ContentDecodingError),
        "a body that is packed as its Content-Encoding says",
        "another",
    ),
    (
        (InvalidURL, InvalidSchema, MissingSchema, InvalidProxyURL),
        "redirects, links and proxies at URLs of HTTP",
        "another",
    ),
)


def _transport_fault(error: Exception) -> str:
    cause = _cause(error)
    if isinstance(error, _TooSlowError):
        return f"an answer that was not complete after {ANSWER_SECONDS} s"
    if isinstance(cause, NameResolutionError):
        return "there is no host of that name"
    if isinstance(cause, NewConnectionError):
        return "nothing listens there" if "refused" in str(cause) else "no way to reach it"
    if isinstance(cause, ConnectTimeoutError):
        return f"no connection within {TIMEOUT_SECONDS[0]:.0f} s"
    if isinstance(cause, ReadTimeoutError):
        return f"no answer within {TIMEOUT_SECONDS[1]:g} s, after {RETRIES.total} retries"
    return f"a broken connection ({type(cause).__name__})"


def _cause(error: Any) -> Any:
    """What urllib3 found, under the names that requests gives it."""
    if isinstance(error, requests.RequestException) and error.args:
        error = error.args[0]
    return getattr(error, "reason", error) if isinstance(error, MaxRetryError) else error


def _passing(error: Exception) -> HTTPError | None:
    """What to tell urllib3's policy of an error that may be gone next time; None if it stays."""
    cause = _cause(error)
    if isinstance(cause, NameResolutionError):
        return None
    if isinstance(cause, ConnectTimeoutError | ReadTimeoutError | ProtocolError):
        return cause
    return None


class _Adapter(HTTPAdapter):
    """Sends a request until its answer is here to the end, or no longer worth another try."""

    def __init__(
        self, retries: Retry, max_bytes: int, is_complete: Callable[[Answer], bool]
    ) -> None:
        super().__init__()
        self._retries, self._max_bytes, self._is_complete = retries, max_bytes, is_complete

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Answer:
        answer = Answer()
        vars(answer).update(vars(super().build_response(req, resp)))
        return answer

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Answer:
        kwargs |= {"stream": True, "timeout": TIMEOUT_SECONDS}
        retries = self._retries.new(allowed_methods=(request.method,))
        while True:
            answer: Answer | None = None
            try:
                answer = super().send(request, *args, **kwargs)  # type: ignore[assignment]
                assert answer is not None
                self._read(answer)
            except (requests.RequestException, HTTPError) as error:
                if answer is not None:
                    answer.close()
                passing = _passing(error)
                try:
                    if passing is None:
                        raise
                    retries = retries.increment(request.method, error=passing)
                except MaxRetryError:
                    raise error from None
                retries.sleep()
            else:
                if answer.status_code not in RETRIED:
                    return answer
                try:
                    retries = retries.increment(request.method, response=answer.raw)
                except MaxRetryError:
                    return answer
                retries.sleep(answer.raw)

    def _read(self, answer: Answer) -> None:
        """Read the body, which may be cut off, drip, or unpack to more than memory holds."""
        deadline = time.monotonic() + ANSWER_SECONDS
        parts, size = [], 0
        while part := answer.raw.read1(1 << 16, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise _TooLargeError
            if time.monotonic() > deadline:
                raise _TooSlowError
        answer.body, answer.size = b"".join(parts), size
        is_whole = answer.is_framed or self._is_complete(answer)
        if not is_whole and answer.status_code == 200:
            raise ProtocolError("cut off")


def _is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, so that no proxy may come between."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
