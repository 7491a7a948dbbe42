"""REST sources: whole partitions only, transport faults retried, wrong answers told apart."""

from __future__ import annotations

import json
import socket
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestration.connectors import rest_api
from orchestration.connectors.rest_api import RestEndpoint, read
from orchestration.errors import MendableError, SourceUnavailableError

TOKEN = "s3cret-token"
WEEKS = {
    "2020-01-06": [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}, {"id": 3, "note": "c"}],
    "2020-01-13": [],
    "2020-01-20": [{"id": 4, "note": None, "extra": True}, {"id": 5}],
}


class Api(ThreadingHTTPServer):
    """An API of `WEEKS` in pages of two, whose next answers a test can replace by faults."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.weeks = dict(WEEKS)
        self.faults = []
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def endpoint(self, **changes):
        spec = {
            "base_url": self.url,
            "path": "/sales",
            "columns": ("id", "note"),
            "partitions": "/weeks",
            "partition": "week",
            "token": TOKEN,
            "system": "shop",
            "table": "sales",
            "url_setting": "WATERSHED_SHOP_URL",
            "token_setting": "WATERSHED_SHOP_TOKEN",
        }
        return RestEndpoint(**(spec | changes))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer({"error": "token"}, 401)
        if self.server.faults:
            return self.server.faults.pop(0)(self)
        if path == "/weeks":
            return self.answer({"data": [{"week": w} for w in self.server.weeks], "pages": 1})
        records, page = self.server.weeks[query["week"][0]], int(query["page"][0])
        pages = -(-len(records) // 2)
        return self.answer({"data": records[(page - 1) * 2 : page * 2], "pages": pages})

    def answer(self, body, status=200, kind="application/json", length=None, **headers):
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def cut_off(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def cut_off_in_the_body(self):
        self.answer('{"data": [', length=1000)
        self.cut_off()

    def log_message(self, *args):
        pass


def answering(*args, **kwargs):
    return lambda handler: handler.answer(*args, **kwargs)


@pytest.fixture
def api():
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    """The pauses between retries: written down, not slept."""
    found = []
    clock = SimpleNamespace(sleep=found.append, time=time.time)
    monkeypatch.setattr("urllib3.util.retry.time", clock)
    return found


def ids(batches):
    return [value for batch in batches for value in batch.rows["id"].to_pylist()]


def test_every_published_record_arrives_in_one_batch_with_the_last_week_as_its_position(api):
    (batch,) = read(api.endpoint(), {})
    assert batch.rows.to_pylist() == [
        {"id": 1, "note": "a"},
        {"id": 2, "note": "b"},
        {"id": 3, "note": "c"},
        {"id": 4, "note": None},
        {"id": 5, "note": None},
    ]
    assert batch.position == {"week": "2020-01-20"}
    assert batch.unexpected_columns == ("extra",)


def test_nothing_is_yielded_when_no_week_is_new(api):
    assert list(read(api.endpoint(), {"week": "2020-01-20"})) == []
    assert len(api.requests) == 1


def test_reading_on_from_any_batch_gives_exactly_the_rest(api):
    batches = list(read(api.endpoint(), {}, batch_rows=1))
    assert [batch.position["week"] for batch in batches] == ["2020-01-06", "2020-01-20"]
    for landed in range(len(batches)):
        position = batches[landed].position
        rest = list(read(api.endpoint(), position, batch_rows=1))
        assert ids(batches[: landed + 1]) + ids(rest) == [1, 2, 3, 4, 5]


def test_a_new_week_without_records_still_moves_the_position(api):
    api.weeks["2020-01-27"] = []
    (batch,) = read(api.endpoint(), {"week": "2020-01-20"})
    assert batch.rows.num_rows == 0
    assert batch.position == {"week": "2020-01-27"}


def test_a_week_that_breaks_off_is_not_yielded(api):
    batches = read(api.endpoint(), {}, batch_rows=1)
    next(batches)
    api.faults = [answering({"error": "gone"}, 404)]
    with pytest.raises(MendableError, match="HTTP 404"):
        next(batches)


def test_weeks_are_read_in_order_whatever_the_order_of_the_listing(api):
    api.weeks = dict(reversed(WEEKS.items())) | {"2020-01-01": [{"id": 0, "note": "z"}]}
    assert ids(read(api.endpoint(), {})) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_fault_is_retried(api, status):
    api.faults = [answering({}, status)] * 3
    assert ids(read(api.endpoint(), {})) == [1, 2, 3, 4, 5]


def test_retry_after_is_obeyed_and_bounded(api, sleeps):
    api.faults = [answering({}, 429, Retry_After="7"), answering({}, 503, Retry_After="99999")]
    assert ids(read(api.endpoint(), {})) == [1, 2, 3, 4, 5]
    assert sleeps == [7, rest_api.RETRIES.retry_after_max]


def test_without_retry_after_the_pauses_grow(api, sleeps):
    api.faults = [answering({}, 503)] * 5
    assert ids(read(api.endpoint(), {})) == [1, 2, 3, 4, 5]
    assert len(sleeps) == 4
    assert sleeps == sorted(sleeps)


@pytest.mark.parametrize("fault", [Handler.cut_off, Handler.cut_off_in_the_body])
def test_a_connection_that_is_cut_off_is_retried(api, fault):
    api.faults = [fault, fault]
    assert ids(read(api.endpoint(), {})) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "fault", [answering({}, 503), Handler.cut_off, Handler.cut_off_in_the_body]
)
def test_a_lasting_fault_ends_as_one_worth_another_try_later(api, fault):
    api.faults = [fault] * 100
    with pytest.raises(SourceUnavailableError, match="WATERSHED_SHOP_URL"):
        list(read(api.endpoint(), {}))
    assert len(api.requests) == 1 + rest_api.RETRIES.total


def test_an_api_that_does_not_answer_says_how_to_start_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceUnavailableError, match="nothing listens there") as caught:
        list(read(Api.endpoint(SimpleNamespace(url=f"http://127.0.0.1:{port}")), {}))
    assert f"127.0.0.1:{port}" in caught.value.thing
    assert "make ui" in caught.value.mend


@pytest.mark.parametrize(
    ("token", "arrived"),
    [
        ("", "no token"),
        ("wr0ng", "a token that the API refuses"),
        ("wr0ng\nX-Injected: 1", "characters"),
        ("wr0ng-ü", "characters"),
    ],
)
def test_a_missing_or_wrong_token_names_its_setting_and_not_itself(api, token, arrived):
    endpoint = api.endpoint(token=token)
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_TOKEN") as caught:
        list(read(endpoint, {}))
    assert not isinstance(caught.value, SourceUnavailableError)
    assert arrived in caught.value.arrived
    assert "wr0ng" not in "".join(traceback.format_exception(caught.value)) + repr(endpoint)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "shop.example.com", "http://", "http://[bad"])
def test_a_malformed_url_names_its_setting(api, url):
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_URL"):
        list(read(api.endpoint(base_url=url), {}))


@pytest.mark.parametrize(
    ("fault", "arrived"),
    [
        (answering("<html>sign in, Ann</html>", kind="text/html"), "25 bytes of text/html"),
        (answering([1, 2]), "a JSON list"),
        (answering({"items": [], "pages": 1}), "the fields items, pages"),
        (answering({"data": [], "next": None}), "the fields data, next"),
        (answering({"data": ["2020-01-06"], "pages": 1}), "the fields data, pages"),
        (answering({"data": [{"month": "1"}], "pages": 1}), "without a text named week"),
        (answering({"data": [{"week": 6}], "pages": 1}), "without a text named week"),
        (answering({}, 404), "HTTP 404"),
    ],
)
def test_an_answer_of_another_form_says_what_arrived_without_quoting_it(api, fault, arrived):
    api.faults = [fault]
    with pytest.raises(MendableError, match=r"shop\.sales \(GET /weeks at 127") as caught:
        list(read(api.endpoint(), {}))
    assert arrived in caught.value.arrived
    assert "Ann" not in str(caught.value)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("records", "arrived"),
    [(WEEKS["2020-01-06"][:2], "page 2 of 2 repeats the one before"), ([], "page 2 of 2 is empty")],
)
def test_a_page_that_repeats_or_is_empty_is_an_error(api, records, arrived):
    batches = read(api.endpoint(), {}, batch_rows=1)
    first_page = answering({"data": WEEKS["2020-01-06"][:2], "pages": 2})
    api.faults = [
        answering({"data": [{"week": "2020-01-06"}], "pages": 1}),
        first_page,
        answering({"data": records, "pages": 2}),
    ]
    with pytest.raises(MendableError, match=arrived):
        next(batches)


def test_a_field_that_no_record_has_names_the_contract(api):
    with pytest.raises(MendableError, match=r"shop\.sales: column price") as caught:
        list(read(api.endpoint(columns=("id", "price")), {}))
    assert caught.value.arrived == "id, note, extra"
    assert "orchestration/contracts/shop.py" in caught.value.mend


def test_values_of_several_types_arrive_as_text_and_none_is_lost(api):
    api.weeks = {
        "2020-01-06": [
            {"id": 1, "note": "a"},
            {"id": "two", "note": 2},
            {"id": None, "note": {"k": [1]}},
            {"id": 2**70, "note": True},
        ]
    }
    (batch,) = read(api.endpoint(), {})
    assert batch.rows.to_pylist() == [
        {"id": "1", "note": "a"},
        {"id": "two", "note": "2"},
        {"id": None, "note": '{"k": [1]}'},
        {"id": str(2**70), "note": "true"},
    ]
