"""A JSON API on this machine that fails on demand: every pagination, tokens, and faults by the dozen."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

TOKEN = "s3cret-token"
CLIENT_SECRET = "s3cret-client"


class FaultyApi(ThreadingHTTPServer):
    """`/weeks` and `/sales?week=` serve `weeks`; `/sales?since=&until=` serves `records`, in order.

    Attributes:
        pages: how lists are cut: a kind of `rest_api.Pagination`.
        most: records on a page at most, whatever is asked for.
        says_total: whether answers tell how many pages or records there are.
        faults: what the next requests meet, one each, in place of an answer; None is no fault.
        between: called before each answer, with the API and the number of the request.
        token: what the `Authorization` header must bear; "" lets everyone in.
        requests, headers: what was asked so far.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pages: str = "page_number", most: int = 2) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.most, self.says_total = pages, most, True
        self.weeks: dict[str, list] = {}
        self.records: list = []
        self.faults: list[Callable[[Handler], None] | None] = []
        self.between: Callable[[FaultyApi, int], None] = lambda api, number: None
        self.token, self.tokens_given, self.expires_in = TOKEN, 0, 3600
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the game."""


@contextmanager
def serving(api: FaultyApi):
    """Serve in a thread as long as the block runs."""
    with api:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: FaultyApi

    def do_POST(self):
        api = self.server
        api.requests.append(self.path)
        api.headers.append(dict(self.headers))
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if api.faults and (fault := api.faults.pop(0)):
            return fault(self)
        if form.get("client_secret") != [CLIENT_SECRET]:
            return self.answer({"error": "invalid_client"}, 401)
        api.tokens_given += 1
        api.token = f"token-{api.tokens_given}"
        return self.answer({"access_token": api.token, "expires_in": api.expires_in})

    def do_GET(self):
        api = self.server
        api.requests.append(self.path)
        api.headers.append(dict(self.headers))
        api.between(api, len(api.requests))
        path = urlsplit(self.path).path
        query = {n: v[0] for n, v in parse_qs(urlsplit(self.path).query).items()}
        if api.faults and (fault := api.faults.pop(0)):
            return fault(self)
        if api.token and self.headers["Authorization"] != f"Bearer {api.token}":
            return self.answer({"error": "token"}, 401)
        if path == "/weeks":
            return self.page([{"week": week} for week in api.weeks], query)
        if "week" in query:
            return self.page(api.weeks[query["week"]], query)
        since, until = query.get("since", ""), query.get("until", "~")
        found = [r for r in api.records if since <= str(r.get("updated_at", "")) < until]
        return self.page(found, query)

    def page(self, records, query):
        api = self.server
        size = min(int(query.get("page_size", query.get("limit", api.most))), api.most)
        pages = -(-len(records) // size)
        if api.pages == "single":
            return self.answer({"data": records})
        if api.pages == "page_number":
            start = (int(query["page"]) - 1) * size
            total = {"pages": pages}
        elif api.pages == "offset":
            start, total = int(query["offset"]), {"total": len(records)}
        else:
            start, total = int(query.get("cursor", "c0")[1:]), {}
        body = {"data": records[start : start + size]} | (total if api.says_total else {})
        rest = start + size < len(records)
        link = f"{urlsplit(self.path).path}?{urlencode(query | {'cursor': f'c{start + size}'})}"
        if api.pages == "cursor":
            body["next"] = f"c{start + size}" if rest else None
        elif api.pages == "next_url":
            body["next"] = api.url + link if rest else None
        elif api.pages == "link_header" and rest:
            return self.answer(body, Link=f'<{api.url}{link}>; rel="next"')
        return self.answer(body)

    def answer(self, body, status=200, kind="application/json", length=None, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is None or length >= 0:
            self.send_header("Content-Length", str(length or len(content)))
        else:
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def answering(*args, **kwargs):
    """A fault: this answer, as `Handler.answer` takes it; `length=-1` does not say how long it is."""
    return lambda handler: handler.answer(*args, **kwargs)


def cut_off(handler: Handler) -> None:
    """A fault: no answer, the connection ends."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_off_in_the_body(handler: Handler) -> None:
    """A fault: an answer that breaks off."""
    handler.answer(b'{"data": [', length=1000)
    handler.wfile.flush()
    cut_off(handler)


def cut_off_in_a_chunk(handler: Handler) -> None:
    """A fault: an answer in chunks that breaks off."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'a\r\n{"data": [\r\n')
    handler.wfile.flush()
    cut_off(handler)


def stalling(handler: Handler) -> None:
    """A fault: an answer that begins and then stands still, until the client hangs up."""
    handler.answer(b'{"data": [', length=1000)
    handler.wfile.flush()
    handler.connection.settimeout(5)
    handler.connection.recv(1)
    handler.close_connection = True
