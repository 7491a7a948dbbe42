"""The pages of a REST API, one after the other, each checked before the next is asked for.

dlt's REST client pages; what can go wrong with pages is noticed here: one that repeats or is empty
too early, a next page that was read before or lies elsewhere, records that shift between pages,
HTML in place of JSON. rest_api.py says what that guarantees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urljoin, urlsplit

from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url, urldefragauth

from orchestration.connectors import Position, address, exact_json, http_client
from orchestration.connectors.http_client import RETRIED, Answer, Oauth
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    from dlt.sources.helpers.rest_client.client import PageData

    from orchestration.connectors.rest_api import RestEndpoint

MAX_RESTARTS = 3
"""How often pages that shift while they are read are read from the first one again."""


@dataclass
class Page:
    """The records of a page, and reason, bytes and place of what is none.

    `resume` tells, unless it is the last page, where its walk goes on; `position` what that makes.
    """

    records: list[dict[str, Any]]
    rejected: list[tuple[str, bytes | None, str]]
    size: int
    where: str
    is_first: bool
    resume: Callable[[], Position] | None
    position: Callable[[], Position] = dict


class Api:
    """A session with an API, which gives pages that are what they should be."""

    def __init__(self, endpoint: RestEndpoint) -> None:
        from dlt.common.configuration.specs import RuntimeConfiguration
        from dlt.sources.helpers.rest_client.client import RESTClient

        http_client.require_url(endpoint.base_url, endpoint.url_setting)
        paging = endpoint.pagination
        self.endpoint = endpoint
        self._auth = _auth(endpoint)
        self._session = http_client.session(
            endpoint.base_url,
            max_bytes=endpoint.max_page_bytes,
            retry_after_max=endpoint.retry_after_max,
            is_complete=_is_complete,
        )
        # Given its configuration, dlt does not look for one in files and the environment.
        self._client = RESTClient(
            _bare(endpoint.base_url),
            auth=self._auth,
            session=self._session,
            config=RuntimeConfiguration(),
        )
        self._records = _json_path(endpoint, endpoint.records or "$")
        self._total = _json_path(endpoint, paging.usual("total"))
        self._has_more = _json_path(endpoint, paging.has_more)
        in_body = paging.kind in ("cursor", "next_url")
        self._next = _json_path(endpoint, paging.usual("next") if in_body else "")

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        if isinstance(self._auth, Oauth):
            self._auth.close()

    def pages(
        self, path: str, params: Mapping[str, str], resume: Position, where: str
    ) -> Iterator[Page]:
        """All pages, or those after `resume`; from the first again if they have shifted.

        There is at least one. The page at which it resumes comes without its records.
        """
        for _ in range(MAX_RESTARTS + 1):
            try:
                yield from self._walk(path, params, resume, where)
            except _ShiftedError as shifted:
                resume, repeats = {}, shifted.repeats
            else:
                return
        raise repeats or SourceUnavailableError(
            f"{_thing(self.endpoint, path)}, {where}",
            expected="records that stay on their pages while they are read",
            arrived=f"pages that shifted, {MAX_RESTARTS + 1} times in a row",
            mend="run again when fewer records change, or choose pagination by cursor",
        )

    def _walk(
        self, path: str, params: Mapping[str, str], resume: Position, where: str
    ) -> Iterator[Page]:
        endpoint, kind = self.endpoint, self.endpoint.pagination.kind
        paginator = self._paginator(resume)
        answers = self._client.paginate(
            **self._first_request(path, params, resume),
            paginator=paginator,
            data_selector=self._records,
            hooks={"response": [partial(self._check, path)]},
        )
        first = endpoint.pagination.first if kind == "page_number" else 0
        at: int = resume.get("page", resume.get("offset", first)) or first
        anchor, seen = resume.get("anchor"), {resume.get("next")}
        total: int | None = None
        before: list[Any] = []
        number = 0
        with http_client.named_errors(
            _thing(endpoint, path), endpoint.url_setting, endpoint.max_page_bytes
        ):
            try:
                for number, page in enumerate(answers, 1):
                    records = list(page)
                    if records and records == before:
                        raise _ShiftedError(
                            self._page_error(path, page, at, "repeats the one before")
                        )
                    total_before, total = total, self._total_of(page)
                    if total_before and total is not None and self._has_moved(total_before, total):
                        raise _ShiftedError
                    known = 0
                    if anchor is not None:
                        known = len(records) if kind == "page_number" else 1
                        if _digest(records[:known]) != anchor:
                            raise _ShiftedError
                    self._check_end(path, page, at, known if kind == "offset" else 0)
                    step = self._step(path, page, at, seen)
                    yield self._page(page, known, where, number, at, step)
                    before, anchor = records, None
                    if kind in ("page_number", "offset"):
                        at = paginator.current_value
                    if kind == "offset" and paginator.overlaps:
                        anchor = _digest(records[-1:])
            except MendableError as error:
                # What it was to resume at may be gone. If that is not it, the first page says so.
                if resume and not number and not isinstance(error, SourceUnavailableError):
                    raise _ShiftedError from None
                raise

    def _first_request(
        self, path: str, params: Mapping[str, str], resume: Position
    ) -> dict[str, Any]:
        endpoint, paging = self.endpoint, self.endpoint.pagination
        if "next" in resume and paging.kind != "cursor":
            url = urljoin(_bare(endpoint.base_url), resume["next"])
            return {"path": url, "params": {**endpoint.params}}
        query: dict[str, Any] = {**endpoint.params, **params}
        if endpoint.fields and path == endpoint.path:
            query[endpoint.fields_param] = ",".join(endpoint.fields)
        if paging.usual("size_param"):
            query[paging.usual("size_param")] = str(paging.size)
        if "next" in resume:
            query[paging.usual("param")] = resume["next"]
        return {"path": path, "params": query}

    def _paginator(self, resume: Position) -> Any:
        from dlt.sources.helpers.rest_client import paginators

        paging = self.endpoint.pagination
        counted: dict[str, Any] = {"total_path": self._total, "has_more_path": self._has_more}
        if paging.kind == "page_number":
            return paginators.PageNumberPaginator(
                base_page=paging.first,
                page=resume.get("page", paging.first),
                page_param=paging.usual("param"),
                **counted,
            )
        if paging.kind == "offset":
            return _overlapping_offset(
                limit=paging.size,
                offset=resume.get("offset", 0),
                offset_param=paging.usual("param"),
                limit_param=paging.usual("size_param"),
                overlaps=bool(resume),
                **counted,
            )
        if paging.kind == "cursor":
            return paginators.JSONResponseCursorPaginator(
                cursor_path=self._next,
                cursor_param=paging.usual("param"),
                has_more_path=self._has_more,
            )
        if paging.kind == "link_header":
            return paginators.HeaderLinkPaginator(paging.usual("next"))
        if paging.kind == "next_url":
            return paginators.JSONLinkPaginator(self._next)
        return paginators.SinglePagePaginator()

    def _step(
        self, path: str, page: PageData[Any], at: int, seen: set[str | None]
    ) -> Callable[[], Position] | None:
        """What `resume` must hold to go on after this page; None if there is nothing to go on to.

        Raises:
            MendableError: the API points to a page that was read before, or to another address.
        """
        endpoint, paging, paginator = self.endpoint, self.endpoint.pagination, page.paginator
        if not paginator.has_next_page:
            return None
        if paging.kind == "page_number":
            return partial(_anchored, {"page": at}, list(page))
        if paging.kind == "offset":
            last = at + len(page) - 1
            return partial(_anchored, {"offset": last}, page[-1:])
        if paging.kind == "cursor":
            token = page.request.params[paging.usual("param")]
        else:
            token = page.request.url
            if http_client.origin(token) != http_client.origin(endpoint.base_url):
                raise self._page_error(path, page, at, "names a next page at another address")
            token = _relative(token, endpoint.params)
        if token in seen:
            raise self._page_error(path, page, at, "names a next page that was read before")
        seen.add(token)
        if endpoint.token and endpoint.token in unquote_plus(str(token)):
            return None
        return lambda: {"next": token}

    def _page(
        self,
        page: PageData[Any],
        known: int,
        where: str,
        number: int,
        at: int,
        resume: Callable[[], Position] | None,
    ) -> Page:
        """The page without the first `known` of its records."""
        answer = page.response
        assert isinstance(answer, Answer)
        records: list[dict[str, Any]] = page[known:]
        rejected = []
        if not answer.is_fit or set(map(type, records)) - {dict}:
            fit = []
            for index, record in enumerate(records, known + 1):
                reason = exact_json.unfit(record)
                if reason is None:
                    fit.append(record)
                else:
                    place = f"{where}, page {at or number}, record {index}"
                    rejected.append((reason, exact_json.raw(record), place))
            records = fit
        return Page(records, rejected, answer.size, where, number == 1, resume)

    def _check(self, path: str, answer: Any, *_: Any, **kwargs: Any) -> Any:
        """Read the answer's JSON, or say what is wrong: a hook, so that dlt sees good answers only."""
        endpoint = self.endpoint
        is_own = http_client.origin(answer.request.url) == http_client.origin(endpoint.base_url)
        if answer.status_code == 401 and isinstance(self._auth, Oauth) and is_own:
            request = self._auth.renew(answer.request.copy())
            answer = answer.connection.send(request, **kwargs)
        status = answer.status_code
        if status in RETRIED:
            said = http_client.refused_for_now(answer, endpoint.retry_after_max)
            raise http_client.unavailable(_thing(endpoint, path), endpoint.url_setting, said)
        if answer.is_redirect:
            return answer
        if status in (401, 403) and is_own:
            raise _token_error(
                endpoint, "a token that the API refuses" if self._auth else "no token"
            )
        if not 200 <= status < 300:
            raise answer_error(endpoint, path, f"HTTP {status}")
        kind = answer.headers.get("Content-Type", "no content type")
        try:
            answer.document, answer.is_fit = exact_json.parse(answer.body, kind)
        except ValueError as error:
            html = "an HTML page, " if _is_html(answer.body) else ""
            size = f"{len(answer.body)} bytes of {kind.partition(';')[0][:50]}"
            raise answer_error(endpoint, path, f"{html}{size} ({error})") from None
        answer.body = b""  # it can be large, and is done with
        self._check_shape(path, answer, answer.document)
        return answer

    def _check_shape(self, path: str, answer: Answer, document: Any) -> None:
        """Fail unless records, total and what says that there is more are where they should be."""
        endpoint, paging = self.endpoint, self.endpoint.pagination
        shape = f"a JSON {type(document).__name__}"
        if isinstance(document, dict):
            shape = f"JSON with the fields {field_names(document)}"
        found = _found(self._records, document)
        if len(found) != 1 or not isinstance(found[0], list):
            raise answer_error(endpoint, path, f"{shape}; no list at {endpoint.records}")
        for json_path, name, pattern in (
            (self._total, paging.usual("total"), r"[0-9]{1,18}"),
            (self._has_more, paging.has_more, r"True|False"),
        ):
            if json_path and not re.fullmatch(
                pattern, "|".join(map(str, _found(json_path, document)))
            ):
                raise answer_error(endpoint, path, f"{shape}; none that can be used at {name}")
        tokens = _found(self._next, document) if self._next else []
        if tokens and tokens[0] in ("", False):
            self._next.update(document, None)
        elif paging.kind == "link_header":
            tokens = [answer.links.get(paging.usual("next"), {}).get("url")]
        kinds = (str, int, type(None)) if paging.kind == "cursor" else (str, type(None))
        if tokens and (type(tokens[0]) not in kinds or not _is_splittable(tokens[0])):
            raise answer_error(
                endpoint,
                path,
                f"{shape}; no {paging.kind} that can be followed at {paging.usual('next')}",
            )

    def _check_end(self, path: str, page: PageData[Any], at: int, known: int) -> None:
        """Fail when a page without new records is not the last: its records would be passed over."""
        paging, total = self.endpoint.pagination, self._total_of(page)
        if len(page) > known or paging.kind not in ("page_number", "offset"):
            return
        says_more = self._has_more and _found(self._has_more, page.response.json())[0]
        if total is not None and paging.kind == "page_number":
            says_more = says_more or (total > 1 and at < paging.first + total)
        elif total is not None:
            says_more = says_more or at + len(page) < total
        if says_more:
            raise self._page_error(path, page, at, "is empty")

    def _has_moved(self, total_before: int, total: int) -> bool:
        """Whether the total changed as it must not: a range may grow while it is read."""
        return total < total_before or (total > total_before and not self.endpoint.cursor)

    def _total_of(self, page: PageData[Any]) -> int | None:
        """How many pages or records there are, if the answer says so."""
        return int(_found(self._total, page.response.json())[0]) if self._total else None

    def _page_error(self, path: str, page: PageData[Any], at: int, wrong: str) -> MendableError:
        paging, total = self.endpoint.pagination, self._total_of(page)
        which = f"the page at {at}" if paging.kind == "offset" else "a page"
        if paging.kind == "page_number":
            which = f"page {at - paging.first + 1}" + (f" of {total}" if total is not None else "")
        return answer_error(self.endpoint, path, f"{which} {wrong}")


class _ShiftedError(Exception):
    """The pages are not where they were: read them from the first one again.

    A page that `repeats` the one before is a shift as well, or an API that heeds no parameter.
    """

    def __init__(self, repeats: MendableError | None = None) -> None:
        self.repeats = repeats


def _auth(endpoint: RestEndpoint) -> AuthBase | None:
    from dlt.sources.helpers.rest_client.auth import BearerTokenAuth

    if endpoint.oauth:
        thing = f"{endpoint.system}.{endpoint.table}"
        return Oauth(endpoint.oauth, thing, endpoint.retry_after_max)
    if endpoint.token:
        if not http_client.is_sendable(endpoint.token):
            raise _token_error(endpoint, "a token with characters that no request can carry")
        bearer: AuthBase = BearerTokenAuth(token=endpoint.token)
        return bearer
    user, password = get_auth_from_url(endpoint.base_url)
    return HTTPBasicAuth(user, password) if user else None


def _overlapping_offset(*, overlaps: bool, **kwargs: Any) -> Any:
    """The paginator of dlt by offset, whose pages begin with the last record of the page before.

    It also goes by what arrived, not by the limit, which an API may lower.
    """
    from dlt.sources.helpers.rest_client.paginators import OffsetPaginator

    class OverlappingOffset(OffsetPaginator):
        overlaps = False

        def update_state(self, response: Any, data: list[Any] | None = None) -> None:
            arrived = len(data or ())
            if self.overlaps and arrived == 1:
                self._has_next_page = False
                return
            self.overlaps = arrived > 1
            self.value_step = max(arrived - 1, 1)
            self.base_index = -1 if self.overlaps else 0
            super().update_state(response, data)

    paginator = OverlappingOffset(**kwargs)
    paginator.overlaps = overlaps
    return paginator


def _anchored(place: Position, records: list[Any]) -> Position:
    """A place in the walk, and by which records to know it again."""
    return {**place, "anchor": _digest(records)}


def _digest(records: list[Any]) -> str:
    return blake2b(
        b"\n".join(exact_json.raw(record) or b"" for record in records), digest_size=8
    ).hexdigest()


def _json_path(endpoint: RestEndpoint, text: str) -> Any:
    from dlt.common.jsonpath import compile_path
    from jsonpath_ng.exceptions import JSONPathError

    try:
        return compile_path(text) if text else None
    except JSONPathError:
        raise description_error(endpoint, "a JSON path such as data.items", text) from None


def _found(json_path: Any, document: Any) -> list[Any]:
    return [match.value for match in json_path.find(document)]


def _is_splittable(url: Any) -> bool:
    try:
        urlsplit(str(url))
    except ValueError:
        return False
    return True


def _is_complete(answer: Answer) -> bool:
    """Whether a body of unknown length is all there, as far as it can be seen."""
    try:
        exact_json.parse(answer.body)
    except ValueError:
        return _is_html(answer.body)
    return True


def _is_html(body: bytes) -> bool:
    return body.lstrip()[:1] == b"<"


def _bare(url: str) -> str:
    """The URL without its user, password and fragment."""
    bare: str = urldefragauth(url)
    return bare


def _relative(url: str, params: Mapping[str, str]) -> str:
    """Path and query of a URL, without those parameters, which may be secret."""
    parts = urlsplit(url)
    kept = [
        part
        for part in parts.query.split("&")
        if part and unquote_plus(part.partition("=")[0]) not in params
    ]
    return parts.path + ("?" + "&".join(kept) if kept else "")


def field_names(document: dict[str, Any]) -> str:
    """Names, as far as they look like some: a map's keys may be anything."""
    names = [name for name in document if re.fullmatch(r"[A-Za-z_][\w.-]{0,40}", name)]
    return ", ".join(names[:20]) or "(none)"


def _thing(endpoint: RestEndpoint, path: str) -> str:
    where = f"GET {path.partition('?')[0]} at {address(endpoint.base_url)}"
    return f"{endpoint.system}.{endpoint.table} ({where})"


def answer_error(endpoint: RestEndpoint, path: str, arrived: str) -> MendableError:
    """The error for an answer that is not what was promised."""
    paging = endpoint.pagination
    told = [f"records at {endpoint.records}"]
    told += [f"their number at {paging.usual('total')}"] if paging.usual("total") else []
    return MendableError(
        _thing(endpoint, path),
        expected=f"JSON, {' and '.join(told)}, in pages by {paging.kind}",
        arrived=arrived,
        mend=f"check that {endpoint.url_setting} is the API's base URL, compare"
        f" orchestration/defs/raw/{endpoint.system}/defs.yaml with its manual, or ask who runs it",
    )


def description_error(endpoint: RestEndpoint, expected: str, arrived: str) -> MendableError:
    """The error for an endpoint that is described so that it cannot be read."""
    return MendableError(
        f"{endpoint.system}.{endpoint.table}: how it is read",
        expected=expected,
        arrived=arrived,
        mend=f"correct orchestration/defs/raw/{endpoint.system}/defs.yaml",
    )


def _token_error(endpoint: RestEndpoint, arrived: str) -> MendableError:
    if endpoint.oauth:
        return http_client.credentials_error(endpoint.oauth, arrived)
    setting = endpoint.token_setting or "token_setting"
    return MendableError(
        f"setting {setting}",
        expected=f"the bearer token of the API at {address(endpoint.base_url)}",
        arrived=arrived,
        mend=f"set {setting} in the environment or in .env",
    )
