"""REST sources: every record at least once, whatever pages, faults, shifts and crashes come."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import re
import socket
import subprocess
import sys
import time
import traceback
import tracemalloc
import zlib
from datetime import timedelta
from itertools import count, islice
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from requests import Request

from orchestration.connectors import Span, Whole, http_client, rest_api, rest_pages
from orchestration.connectors.http_client import RETRIES, ClientCredentials
from orchestration.connectors.rest_api import Pagination, RestEndpoint, read
from orchestration.errors import MendableError, SourceUnavailableError
from tests.faulty_api import (
    CLIENT_SECRET,
    TOKEN,
    FaultyApi,
    answering,
    cut_off,
    cut_off_in_a_chunk,
    cut_off_in_the_body,
    serving,
    stalling,
)

KINDS = ("page_number", "offset", "cursor", "link_header", "next_url")
WEEKS = {
    "2020-01-06": [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}, {"id": 3, "note": "c"}],
    "2020-01-13": [],
    "2020-01-20": [{"id": 4, "note": None, "extra": True}, {"id": 5}],
}


def records_of(many):
    return [{"id": i, "updated_at": f"2020-01-{1 + i // 2:02d}"} for i in range(many)]


SALES = records_of(9)


def endpoint_of(api, **changes):
    size = api.most + (api.pages == "offset")
    spec = {
        "base_url": api.url,
        "path": "/sales",
        "columns": ("id", "note"),
        "pagination": Pagination(api.pages, size=size),
        "token": TOKEN,
        "token_setting": "WATERSHED_SHOP_TOKEN",
        "system": "shop",
        "table": "sales",
        "url_setting": "WATERSHED_SHOP_URL",
    }
    return RestEndpoint(**(spec | changes))


def by_week(api, **changes):
    return endpoint_of(api, partitions="/weeks", partition="week", **changes)


def by_time(api, **changes):
    changes = {"cursor": "updated_at", "start_param": "since", "end_param": "until"} | changes
    return endpoint_of(api, **changes)


@pytest.fixture
def api():
    with serving(FaultyApi()) as served:
        served.weeks, served.records = dict(WEEKS), list(SALES)
        yield served


@pytest.fixture
def api_of():
    """An API of another pagination; as many as the test asks for."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(kind):
            served = stack.enter_context(serving(FaultyApi(kind)))
            served.most += kind == "offset"
            served.weeks, served.records = dict(WEEKS), list(SALES)
            return served

        yield start


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    """The pauses between retries: written down, not slept."""
    found = []
    clock = SimpleNamespace(sleep=found.append, time=time.time)
    monkeypatch.setattr("urllib3.util.retry.time", clock)
    return found


def ids(batches):
    return [row["id"] for batch in batches for row in batch.rows.to_pylist()]


def told(error):
    """Everything of an error that anyone may get to see."""
    return "".join(traceback.format_exception(error)) + repr(error)


# Partitions


def test_every_published_record_arrives_in_one_batch_with_the_last_week_as_its_position(api):
    (batch,) = read(by_week(api), {})
    assert batch.rows.to_pylist() == [
        {"id": 1, "note": "a", "extra": None, "_source_position": "week 2020-01-06"},
        {"id": 2, "note": "b", "extra": None, "_source_position": "week 2020-01-06"},
        {"id": 3, "note": "c", "extra": None, "_source_position": "week 2020-01-06"},
        {"id": 4, "note": None, "extra": True, "_source_position": "week 2020-01-20"},
        {"id": 5, "note": None, "extra": None, "_source_position": "week 2020-01-20"},
    ]
    assert batch.position == {"week": "2020-01-20", "listed": 3}
    assert batch.where == "week 2020-01-06 to 2020-01-20"
    assert batch.completes
    assert not batch.first_time


def test_nothing_is_yielded_when_no_week_is_new(api):
    assert list(read(by_week(api), {"week": "2020-01-20", "listed": 3})) == []
    assert len(api.requests) == 2  # the list has two pages


def test_a_position_from_before_weeks_were_counted_is_understood(api):
    assert list(read(by_week(api), {"week": "2020-01-20"})) == []
    assert ids(read(by_week(api), {"week": "2020-01-13"})) == [4, 5]


def test_a_new_week_without_records_still_moves_the_position(api):
    api.weeks["2020-01-27"] = []
    (batch,) = read(by_week(api), {"week": "2020-01-20", "listed": 3})
    assert batch.rows.num_rows == 0
    assert batch.position == {"week": "2020-01-27", "listed": 4}


def test_weeks_are_read_in_order_whatever_the_order_of_the_list(api):
    api.weeks = dict(reversed(WEEKS.items())) | {"2020-01-01": [{"id": 0, "note": "z"}]}
    assert ids(read(by_week(api), {})) == [0, 1, 2, 3, 4, 5]


def test_a_week_that_is_published_late_is_not_passed_over(api):
    (landed,) = read(by_week(api), {})
    api.weeks |= {"2020-01-15": [{"id": 9, "note": "late"}], "2020-01-27": [{"id": 6}]}
    (batch,) = read(by_week(api), landed.position)
    assert set(ids([batch])) == {1, 2, 3, 4, 5, 6, 9}
    assert batch.position == {"week": "2020-01-27", "listed": 5}
    assert list(read(by_week(api), batch.position)) == []


def test_the_position_never_goes_back_while_a_late_week_is_read(api):
    api.weeks["2020-01-15"] = [{"id": 9, "note": "late"}]
    position = {"week": "2020-01-20", "listed": 3}
    batches = list(read(by_week(api), position, batch_rows=1))
    assert {batch.position["week"] for batch in batches} == {"2020-01-20"}
    assert [batch.position["listed"] for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert batches[-1].position == {"week": "2020-01-20", "listed": 4}


def test_the_pages_before_one_that_fails_are_yielded_and_it_goes_on_from_there(api):
    batches = read(by_week(api), {})
    api.faults = [None] * 3 + [answering({"error": "gone"}, 404)]
    landed = next(batches)
    assert ids([landed]) == [1, 2]
    with pytest.raises(MendableError, match="HTTP 404"):
        next(batches)
    assert ids(read(by_week(api), landed.position)) == [3, 4, 5]


def test_a_span_gives_the_weeks_in_it_and_leaves_the_position(api):
    position = {"week": "2020-01-06", "listed": 1, "resume": {"of": "week 2020-01-13"}}
    batches = list(read(by_week(api), position, Span("2020-01-06", "2020-01-20"), batch_rows=1))
    assert ids(batches) == [1, 2, 3]
    assert all(batch.position == position for batch in batches)
    assert ids(read(by_week(api), {}, Span(start="2020-01-07"))) == [4, 5]
    assert ids(read(by_week(api), {}, Span(end="2020-01-07"))) == [1, 2, 3]


# A range


@pytest.mark.parametrize("kind", [*KINDS, "single"])
def test_a_range_is_read_on_from_the_largest_value_and_ties_come_again(api_of, kind):
    api = api_of(kind)
    api.records.reverse()  # the order of the pages does not matter
    (batch,) = read(by_time(api, columns=()), {})
    assert sorted(ids([batch])) == list(range(9))
    assert batch.position == {"cursor": "2020-01-05"}
    api.records += [{"id": 9, "updated_at": "2020-01-05"}, {"id": 10, "updated_at": "2020-01-06"}]
    (batch,) = read(by_time(api, columns=()), batch.position)
    assert sorted(ids([batch])) == [8, 9, 10]
    assert batch.position == {"cursor": "2020-01-06"}


def test_the_cursor_stands_until_every_page_of_the_range_is_here(api):
    batches = list(read(by_time(api), {"cursor": "2020-01-02"}, batch_rows=2))
    assert [batch.position["cursor"] for batch in batches] == ["2020-01-02"] * 3 + ["2020-01-05"]


def test_nothing_is_yielded_when_a_range_is_empty(api):
    assert list(read(by_time(api), {"cursor": "2021-01-01"})) == []


def test_a_range_begins_at_its_first_value_and_asks_for_the_fields_and_parameters(api):
    endpoint = by_time(
        api, since="2020-01-04", fields=("id", "updated_at"), params={"region": "north"}
    )
    assert ids(read(endpoint, {})) == [6, 7, 8]
    assert api.requests[0] == (
        "/sales?region=north&since=2020-01-04&fields=id%2Cupdated_at&page_size=2&page=1"
    )


def test_a_span_gives_a_range_of_the_cursor_and_leaves_the_position(api):
    position = {"cursor": "2020-01-05"}
    (batch,) = read(by_time(api), position, Span("2020-01-02", "2020-01-04"))
    assert ids([batch]) == [2, 3, 4, 5]
    assert batch.position == position


@pytest.mark.parametrize(
    ("cursor", "overlap", "begins_at"),
    [
        ("2020-03-01", timedelta(days=1), "2020-02-29"),
        ("2020-03-01T00:00:00Z", timedelta(hours=1), "2020-02-29T23:00:00Z"),
        ("2020-03-01 00:00:00.500000", timedelta(seconds=1), "2020-02-29 23:59:59.500000"),
        ("2020-03-01T00:00:00+02:00", timedelta(minutes=5), "2020-02-29T23:55:00+02:00"),
        (1000, 50, "950"),
        (1000.5, 0.5, "1000.0"),
    ],
)
def test_an_overlap_begins_before_the_last_value(api, cursor, overlap, begins_at):
    api.records = []
    list(read(by_time(api, overlap=overlap), {"cursor": cursor}))
    assert parse_qs(urlsplit(api.requests[0]).query)["since"] == [begins_at]


@pytest.mark.parametrize(
    ("cursor", "overlap"),
    [("week 3", timedelta(1)), ("0001-01-01", timedelta(1)), (5, timedelta(1)), ("5", 1)],
)
def test_an_overlap_that_cannot_be_taken_says_so_without_the_value(api, cursor, overlap):
    with pytest.raises(MendableError, match="an overlap that can be taken") as caught:
        list(read(by_time(api, overlap=overlap), {"cursor": cursor}))
    assert "week 3" not in str(caught.value)


def test_numbers_are_compared_as_numbers(api):
    api.records = [{"id": i, "updated_at": i} for i in (9, 10, 2)]
    (batch,) = read(by_time(api), {"cursor": 1})
    assert batch.position == {"cursor": 10}


@pytest.mark.parametrize("values", [("2020", 1), (True, False), ([1], [2])])
def test_a_cursor_of_several_types_is_an_error(api, values):
    api.records = [{"id": i, "updated_at": value} for i, value in enumerate(values)]
    with pytest.raises(MendableError, match="updated_at is not always text, or a number"):
        list(read(by_time(api), {}))


def test_records_that_never_have_the_cursor_are_an_error_once_they_are_here(api):
    api.records = [{"id": 1}, {"id": 2, "updated_at": None}]
    batches = read(by_time(api, start_param="from"), {})
    batch = next(batches)
    assert ids([batch]) == [1, 2]
    with pytest.raises(MendableError, match="none has a updated_at"):
        next(batches)


# The whole


@pytest.mark.parametrize("kind", [*KINDS, "single"])
@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_the_whole_replaces_the_table_in_batches_that_complete_together(api_of, kind, batch_rows):
    api = api_of(kind)
    batches = list(read(endpoint_of(api), {}, batch_rows=batch_rows))
    assert ids(batches) == list(range(9))
    assert [b.completes for b in batches] == [False] * (len(batches) - 1) + [True]
    assert [b.replaces for b in batches] == [Whole.TABLE] + [()] * (len(batches) - 1)
    assert len({json.dumps(b.position) for b in batches}) == 1
    assert batches[0].position["rows"] == 9


def test_an_unchanged_whole_is_counted_and_not_sent_whatever_its_order(api):
    (landed,) = read(endpoint_of(api), {})
    api.records = [dict(reversed(record.items())) for record in reversed(api.records)]
    (batch,) = read(endpoint_of(api), landed.position)
    assert (batch.rows.num_rows, batch.unchanged_rows) == (0, 9)
    assert batch.position == landed.position
    assert batch.replaces == ()


@pytest.mark.parametrize("change", ["a value", "one less", "one twice"])
def test_a_changed_whole_is_sent(api, change):
    (landed,) = read(endpoint_of(api), {})
    if change == "a value":
        api.records[4] = api.records[4] | {"note": "new"}
    elif change == "one less":
        del api.records[4]
    else:
        api.records.append(api.records[4])
    (batch,) = read(endpoint_of(api), landed.position)
    assert batch.rows.num_rows == len(api.records)
    assert batch.replaces is Whole.TABLE


def test_a_change_in_an_ignored_field_is_none(api):
    endpoint = endpoint_of(api, ignore=("seen",))
    api.records = [record | {"seen": 1} for record in SALES]
    (landed,) = read(endpoint, {})
    assert landed.rows.column_names == ["id", "updated_at", "_source_position"]
    api.records = [record | {"seen": 2} for record in SALES]
    (batch,) = read(endpoint, landed.position)
    assert batch.unchanged_rows == 9


def test_an_endpoint_that_became_empty_empties_the_table(api):
    (landed,) = read(endpoint_of(api), {})
    api.records = []
    (batch,) = read(endpoint_of(api), landed.position)
    assert (batch.rows.num_rows, batch.replaces, batch.completes) == (0, Whole.TABLE, True)


def test_nothing_of_a_whole_is_yielded_when_a_page_fails(api):
    api.faults = [None, None, answering({}, 404)]
    batches = read(endpoint_of(api), {}, batch_rows=1)
    with pytest.raises(MendableError, match="HTTP 404"):
        next(batches)


def test_a_whole_has_no_parts(api):
    with pytest.raises(MendableError, match="partitions or a cursor"):
        list(read(endpoint_of(api), {}, Span(start="1")))
    assert api.requests == []


# Resuming


@pytest.mark.parametrize("kind", [*KINDS, "single"])
@pytest.mark.parametrize("of", [by_week, by_time])
def test_reading_on_from_any_batch_gives_exactly_the_rest(api_of, kind, of):
    api = api_of(kind)
    api.records.reverse()
    batches = list(read(of(api, columns=()), {}, batch_rows=1))
    for landed in range(len(batches) - 1):
        position = json.loads(json.dumps(batches[landed].position))
        rest = list(read(of(api, columns=()), position, batch_rows=1))
        assert ids(batches[: landed + 1]) + ids(rest) == ids(batches)
        assert rest[-1].position == batches[-1].position


@pytest.mark.parametrize("kind", KINDS)
def test_reading_on_asks_for_no_page_twice_but_the_one_that_shows_a_shift(api_of, kind):
    api = api_of(kind)
    batches = list(read(by_time(api), {}, batch_rows=1))
    asked = len(api.requests)
    list(read(by_time(api), batches[-2].position))
    assert len(api.requests) - asked == (2 if kind == "page_number" else 1)


@pytest.mark.parametrize("kind", ["page_number", "offset"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_shift_between_two_runs_begins_again(api_of, kind, lost):
    api = api_of(kind)
    first, second, *_ = read(by_time(api), {}, batch_rows=1)
    del api.records[lost]
    rest = list(read(by_time(api), second.position, batch_rows=1))
    assert set(ids([first, second, *rest])) == set(range(9))
    assert rest[-1].position == {"cursor": "2020-01-05"}


@pytest.mark.parametrize("kind", ["cursor", "next_url", "link_header"])
@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_cursor_that_has_expired_begins_again(api_of, kind, status):
    api = api_of(kind)
    first, *_ = read(by_time(api), {}, batch_rows=1)
    api.faults = [answering({"error": "expired"}, status)]
    rest = list(read(by_time(api), first.position))
    assert ids(rest) == list(range(9))


def test_a_place_that_another_pagination_left_is_not_used(api_of):
    first, *_ = read(by_time(api_of("offset")), {}, batch_rows=1)
    assert ids(read(by_time(api_of("cursor")), first.position)) == list(range(9))


def test_a_next_url_is_kept_without_host_token_and_parameters(api_of):
    api = api_of("next_url")
    endpoint = by_time(api, params={"api_key": "s3cret-key"})
    first, *rest = read(endpoint, {}, batch_rows=1)
    assert first.position["resume"]["next"] == "/sales?cursor=c2"
    assert "api_key=s3cret-key" in api.requests[-1]
    assert ids(read(endpoint, first.position)) == ids(rest)
    assert "api_key=s3cret-key" in api.requests[-1]


def test_a_next_page_that_bears_the_token_is_followed_and_not_kept(api_of):
    api = api_of("cursor")
    api.faults = [
        answering({"data": [{"id": 1, "updated_at": "1"}], "next": f"x{TOKEN}"}),
        answering({"data": [{"id": 2, "updated_at": "2"}]}),
    ]
    first, *_ = read(by_time(api), {}, batch_rows=1)
    assert TOKEN not in json.dumps(first.position)
    assert f"cursor=x{TOKEN}" in api.requests[1]


# Pages that are not what they should be


@pytest.mark.parametrize("of", [by_week, by_time, endpoint_of])
def test_a_page_that_repeats_is_an_error_when_it_is_no_passing_shift(api, of):
    repeats = answering({"data": SALES[:2], "pages": 3})
    lists = [None, None] if of is by_week else []
    api.faults = [*lists, repeats, repeats]
    api.weeks = {"w": SALES}
    assert set(ids(read(of(api), {}))) == set(range(9))
    api.faults = [*lists, *[repeats] * 100]
    with pytest.raises(MendableError, match="page 2 of 3 repeats the one before") as caught:
        list(read(of(api), {}))
    assert not isinstance(caught.value, SourceUnavailableError)


def test_a_page_that_is_empty_before_the_end_is_an_error(api):
    api.faults = [None, answering({"data": [], "pages": 5})]
    batches = read(by_time(api), {})
    assert ids([next(batches)]) == [0, 1]
    with pytest.raises(MendableError, match="page 2 of 5 is empty"):
        next(batches)


def test_an_offset_that_the_api_does_not_heed_is_an_error(api_of):
    api = api_of("offset")
    api.faults = [answering({"data": SALES[:3], "total": 9})] * 100
    with pytest.raises(MendableError, match="the page at 2 repeats the one before"):
        list(read(endpoint_of(api), {}))


def test_an_offset_whose_end_comes_before_the_total_is_an_error(api_of):
    api = api_of("offset")
    api.faults = [
        answering({"data": SALES[:3], "total": 9}),
        answering({"data": SALES[2:3], "total": 9}),
    ]
    with pytest.raises(MendableError, match="the page at 2 is empty"):
        list(read(endpoint_of(api), {}))


@pytest.mark.parametrize("most", [1, 2])
def test_an_api_that_lowers_the_limit_loses_nothing(api_of, most):
    api = api_of("offset")
    endpoint = by_time(api)
    api.most = most
    assert ids(read(endpoint, {})) == list(range(9))


@pytest.mark.parametrize("kind", ["page_number", "offset"])
def test_without_a_total_the_end_is_where_nothing_more_comes(api_of, kind):
    api = api_of(kind)
    api.says_total = False
    paging = Pagination(kind, size=api.most, total="")
    assert ids(read(endpoint_of(api, pagination=paging), {})) == list(range(9))


def test_an_api_that_says_whether_there_is_more_is_believed(api):
    api.faults = [
        answering({"data": [{"id": 1}], "more": True}),
        answering({"data": [{"id": 2}], "more": False}),
    ]
    paging = Pagination(total="", has_more="more")
    assert ids(read(endpoint_of(api, pagination=paging), {})) == [1, 2]
    api.faults = [
        answering({"data": [{"id": 1}], "more": True}),
        answering({"data": [], "more": True}),
    ]
    with pytest.raises(MendableError, match="page 2 is empty"):
        list(read(endpoint_of(api, pagination=paging), {}))


def test_an_empty_page_in_the_middle_is_no_end_for_a_cursor(api_of):
    api = api_of("cursor")
    api.faults = [
        answering({"data": [{"id": 1}], "next": "a"}),
        answering({"data": [], "next": "b"}),
        answering({"data": [{"id": 2}], "next": ""}),
    ]
    assert ids(read(endpoint_of(api), {})) == [1, 2]


@pytest.mark.parametrize("kind", ["cursor", "next_url", "link_header"])
@pytest.mark.parametrize("cycle", [["a", "a"], ["a", "b", "a"]])
def test_a_cursor_that_does_not_move_or_comes_back_is_an_error(api_of, kind, cycle):
    api = api_of(kind)

    def page(number, place):
        url = f"{api.url}/sales?at={place}"
        body = {"data": [{"id": number}], "next": place if kind == "cursor" else url}
        return answering(body, Link=f'<{url}>; rel="next"')

    api.faults = [page(number, place) for number, place in enumerate(cycle)]
    with pytest.raises(MendableError, match="names a next page that was read before"):
        list(read(endpoint_of(api), {}))
    assert len(api.requests) == len(cycle)


def test_a_token_of_another_type_than_text_or_number_is_an_error(api_of):
    for kind, token in (("cursor", {"a": 1}), ("cursor", True), ("next_url", 5)):
        api = api_of(kind)
        api.faults = [answering({"data": [{"id": 1}], "next": token})]
        with pytest.raises(MendableError, match=f"no {kind} that can be followed at next"):
            list(read(endpoint_of(api), {}))


@pytest.mark.parametrize("kind", ["next_url", "link_header"])
@pytest.mark.parametrize(
    ("url", "wrong"),
    [("http://[bad", "can be followed"), ("https://evil.example/x", "at another address")],
)
def test_a_next_page_elsewhere_is_not_followed(api_of, kind, url, wrong):
    api = api_of(kind)
    api.faults = [answering({"data": [{"id": 1}], "next": url}, Link=f'<{url}>; rel="next"')]
    with pytest.raises(MendableError, match=wrong):
        list(read(endpoint_of(api), {}))
    assert len(api.requests) == 1


def test_a_relative_next_url_is_followed(api_of):
    api = api_of("next_url")
    api.faults = [answering({"data": [{"id": 1}], "next": "sales?cursor=c8"})]
    assert ids(read(endpoint_of(api), {})) == [1, 8]


# Shifts while it reads


def test_a_total_that_shrinks_begins_again(api):
    def between(served, number):
        if number == 3:
            del served.records[:2]

    api.between = between
    assert set(ids(read(by_time(api), {}))) == set(range(9))


def test_a_week_whose_total_changes_begins_again(api):
    api.faults = [None, None, answering({"data": WEEKS["2020-01-06"][:2], "pages": 3})]
    assert set(ids(read(by_week(api), {}))) == {1, 2, 3, 4, 5}


def test_a_whole_that_changes_while_it_is_read_is_read_as_it_is_afterwards(api):
    def between(served, number):
        if number == 3:
            del served.records[0]

    api.between = between
    batches = list(read(endpoint_of(api), {}, batch_rows=1))
    assert ids(batches) == list(range(1, 9))
    assert batches[0].position["rows"] == 8


@pytest.mark.parametrize("of", [by_time, endpoint_of])
def test_pages_that_never_stand_still_end_as_worth_another_try(api_of, of):
    api = api_of("offset")

    def between(served, number):
        served.records.append(served.records.pop(0))

    api.between = between
    with pytest.raises(SourceUnavailableError, match="pages that shifted, 4 times in a row"):
        list(read(of(api), {}))


# Faults on the way


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520, 599])
def test_a_passing_fault_is_retried(api, status):
    api.faults = [answering({}, status)] * 3
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", [400, 402, 404, 408, 409, 410, 413, 418, 425, 451])
def test_other_refusals_are_not_retried_even_if_they_ask_for_it(api, status, sleeps):
    api.faults = [answering({}, status, Retry_After="1")]
    with pytest.raises(MendableError, match=f"HTTP {status}") as caught:
        list(read(by_week(api), {}))
    assert not isinstance(caught.value, SourceUnavailableError)
    assert (len(api.requests), sleeps) == (1, [])


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(api, sleeps):
    from email.utils import formatdate

    api.faults = [
        answering({}, 429, Retry_After="7"),
        answering({}, 503, Retry_After="1.5"),
        answering({}, 503, Retry_After=formatdate(time.time() + 30, usegmt=True)),
    ]
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]
    assert sleeps[:2] == [7, 2]
    assert 20 < sleeps[2] <= 30


@pytest.mark.parametrize(
    "said", ["-5", "soon", "", "1e9", "9" * 5000, "Thu, 01 Jan 1970 00:00:00 GMT", "0"]
)
def test_a_retry_after_that_makes_no_sense_is_as_good_as_none(api, sleeps, said):
    api.faults = [answering({}, 503, Retry_After=said)] * 3
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]
    assert all(pause < 2 for pause in sleeps)


@pytest.mark.parametrize("said", ["31536000", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_retry_after_is_bounded_and_named(api, sleeps, said):
    api.faults = [answering({}, 429, Retry_After=said)] * 100
    with pytest.raises(SourceUnavailableError, match="Retry-After asks to wait") as caught:
        list(read(by_week(api, retry_after_max=20), {}))
    assert sleeps == [20] * RETRIES.total
    assert "longer than the 20 s" in caught.value.arrived


def test_without_retry_after_the_pauses_grow_and_are_jittered(api, sleeps):
    for _ in range(2):
        api.faults = [answering({}, 503)] * 5
        assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]
    assert len(sleeps) == 8
    assert sleeps[:4] == sorted(sleeps[:4])
    assert sleeps[:4] != sleeps[4:]


CUTS = [cut_off, cut_off_in_the_body, cut_off_in_a_chunk]
UNFRAMED = answering(b'{"data": [{"id": 1}, {"i', length=-1)


@pytest.mark.parametrize("fault", [*CUTS, UNFRAMED])
def test_a_connection_that_is_cut_off_is_retried(api, fault):
    api.faults = [fault, fault]
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]


def test_an_answer_without_a_length_is_taken_when_it_is_whole(api):
    whole = json.dumps({"data": SALES[:2], "pages": 1}).encode()
    api.faults = [answering(whole, length=-1)]
    assert ids(read(endpoint_of(api), {})) == [0, 1]
    assert len(api.requests) == 1


def test_an_answer_that_does_not_come_in_time_is_retried(api, monkeypatch):
    monkeypatch.setattr(http_client, "TIMEOUT_SECONDS", (1, 0.05))
    api.faults = [stalling, None, stalling]
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]


def test_an_answer_that_never_comes_says_for_how_long_it_was_waited(api, monkeypatch):
    monkeypatch.setattr(http_client, "TIMEOUT_SECONDS", (1, 0.02))
    api.faults = [stalling] * 6
    with pytest.raises(SourceUnavailableError, match="no answer within"):
        list(read(by_week(api), {}))
    assert len(api.requests) == 1 + RETRIES.total


def test_an_answer_that_drips_comes_to_an_end(api, monkeypatch):
    monkeypatch.setattr(http_client, "ANSWER_SECONDS", 0.1)

    def dripping(handler):
        handler.answer(b"[", length=100_000)
        for _ in range(50):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    api.faults = [dripping]
    with pytest.raises(SourceUnavailableError, match="not complete after"):
        list(read(by_week(api), {}))


@pytest.mark.parametrize("fault", [answering({}, 503), *CUTS])
def test_a_lasting_fault_ends_as_one_worth_another_try_later(api, fault):
    api.faults = [fault] * 100
    with pytest.raises(SourceUnavailableError, match="WATERSHED_SHOP_URL"):
        list(read(by_week(api), {}))
    assert len(api.requests) == 1 + RETRIES.total


def test_faults_of_several_kinds_share_one_budget(api):
    api.faults = [cut_off, answering({}, 503), cut_off_in_the_body, cut_off, answering({}, 429)]
    assert ids(read(by_week(api), {})) == [1, 2, 3, 4, 5]
    api.faults = [cut_off, answering({}, 503), cut_off_in_the_body] * 2
    with pytest.raises(SourceUnavailableError):
        list(read(by_week(api), {}))


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_an_api_that_does_not_answer_says_how_to_start_it(api):
    port = unused_port()
    with pytest.raises(SourceUnavailableError, match="nothing listens there") as caught:
        list(read(by_week(api, base_url=f"http://127.0.0.1:{port}"), {}))
    assert f"127.0.0.1:{port}" in caught.value.thing
    assert "make ui" in caught.value.mend


def test_a_host_that_does_not_exist_is_not_retried(api, sleeps, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(SourceUnavailableError, match="no host of that name"):
        list(read(by_week(api, base_url="http://shop.invalid"), {}))
    assert sleeps == []


def test_a_server_without_tls_is_told_from_one_that_is_away(api, sleeps):
    url = api.url.replace("http:", "https:")
    with pytest.raises(MendableError, match="TLS with a certificate") as caught:
        list(read(by_week(api, base_url=url), {}))
    assert not isinstance(caught.value, SourceUnavailableError)
    assert sleeps == []


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "shop.example.com", "http://", "http://[bad", "ftp://x", "http://a b"]
)
def test_a_malformed_url_names_its_setting(api, url):
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_URL"):
        list(read(by_week(api, base_url=url), {}))


# Answers of another form


@pytest.mark.parametrize(
    ("fault", "arrived"),
    [
        (answering(b"<html>sign in, Ann</html>", kind="text/html"), "HTML page, 25 bytes of text"),
        (answering(b"<html>sign in, Ann</html>"), "an HTML page, 25 bytes of application/json"),
        (answering(b"<html>sign in, Ann</html>", length=-1), "an HTML page"),
        (answering(b'{"data": [{"Ann": 1'), "19 bytes of application/json (not JSON"),
        (answering(b""), "0 bytes"),
        (answering(b"", 204), "0 bytes"),
        (answering(b'{"data": 1, "pages": 1, "data": []}'), "the same key twice"),
        (answering([1, 2]), "a JSON list"),
        (answering("Ann"), "a JSON str"),
        (answering({"items": [], "pages": 1}), "the fields items, pages"),
        (answering({"data": [], "next": None}), "the fields data, next"),
        (answering({"data": None, "pages": 1}), "no list at data"),
        (answering({"data": {"Ann": 1}, "pages": 1}), "no list at data"),
        (answering({"data": [], "pages": "Ann"}), "none that can be used at pages"),
        (answering({"data": [], "pages": -1}), "none that can be used at pages"),
        (answering({"ann@example.com": 1, "x": 2}), "the fields x;"),
        (answering({"data": [{"month": "1"}], "pages": 1}), "without a text named week"),
        (answering({"data": [{"week": 6}], "pages": 1}), "without a text named week"),
        (answering(b"{" + b'"a":[' * 5000), "not JSON"),
        (answering(b"[" * 3000 + b"]" * 3000), "nested too deeply"),
        (answering({}, 404), "HTTP 404"),
        (answering({}, 304), "HTTP 304"),
        (
            answering(b"not packed at all", Content_Encoding="gzip"),
            "packed as its Content-Encoding says",
        ),
        (answering({}, 302, Location="ftp://x/"), "redirects, links and proxies at URLs of HTTP"),
    ],
)
def test_an_answer_of_another_form_says_what_arrived_without_quoting_it(api, fault, arrived):
    api.faults = [fault]
    with pytest.raises(MendableError, match=r"shop\.sales \(GET /weeks at 127") as caught:
        list(read(by_week(api), {}))
    assert arrived in str(caught.value)
    assert not isinstance(caught.value, SourceUnavailableError)
    assert "Ann" not in told(caught.value)
    assert "ann@" not in told(caught.value)
    assert len(api.requests) == 1


def test_redirects_in_a_circle_end(api):
    api.faults = [answering({}, 302, Location="/weeks")] * 20
    with pytest.raises(MendableError, match="redirects, more than may be followed"):
        list(read(by_week(api), {}))


def test_a_page_that_is_too_large_is_named_and_not_kept(api):
    api.records = [{"id": 1, "note": "x" * 300_000}]
    tracemalloc.start()
    try:
        with pytest.raises(MendableError, match="at most 100,000 bytes") as caught:
            list(read(endpoint_of(api, max_page_bytes=100_000), {}))
        assert not isinstance(caught.value, SourceUnavailableError)
    finally:
        tracemalloc.stop()
    assert len(api.requests) == 1


def test_a_body_that_unpacks_to_far_too_much_does_not_fill_the_memory(api):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * (1 << 20)
    bomb = b"".join(packer.compress(block) for _ in range(200)) + packer.flush()
    assert len(bomb) < 1_000_000
    list(read(by_week(api), {}))  # what it imports does not count
    tracemalloc.start()
    try:
        api.faults = [answering(bomb, Content_Encoding="gzip")]
        with pytest.raises(MendableError, match="at most 1,000,000 bytes"):
            list(read(by_week(api, max_page_bytes=1_000_000), {}))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_packed_page_is_unpacked(api):
    body = gzip.compress(json.dumps({"data": SALES, "pages": 1}).encode())
    api.faults = [answering(body, Content_Encoding="gzip")]
    assert ids(read(endpoint_of(api), {})) == list(range(9))


def test_the_records_may_lie_deeper_or_be_all_there_is(api):
    api.faults = [answering({"result": {"items": SALES[:2]}, "meta": {"pages": 1}})]
    endpoint = endpoint_of(api, records="result.items", pagination=Pagination(total="meta.pages"))
    assert ids(read(endpoint, {})) == [0, 1]
    api.faults = [answering(SALES[:2])]
    endpoint = endpoint_of(api, records="$", pagination=Pagination("single"))
    assert ids(read(endpoint, {})) == [0, 1]


# Records that are not what they should be


def page_of(*records):
    return answering(b'{"data": [' + b", ".join(records) + b'], "pages": 1}')


def test_what_is_no_record_is_rejected_with_its_reason_and_bytes_and_the_rest_lands(api):
    api.faults = [
        page_of(
            b'{"id": 1}', b"7", b'"text"', b"null", b"[1, 2]", b'{"id": 2, "id": 3}',
            b'{"id": NaN}', b'{"id": "\xff"}', b'{"id": "\\ud800"}', b'{"id": 4}',
            b'{"id": ' + b"[" * 300 + b"]" * 300 + b"}", b"{}",
        )
    ]  # fmt: skip
    (batch,) = read(endpoint_of(api), {})
    assert batch.rows["id"].to_pylist() == [1, 4, None]
    place = "all of /sales, page 1, record "
    assert batch.rejected.select(["reason", "raw", "_source_position"]).to_pylist()[:-1] == [
        {"reason": reason, "raw": raw, "_source_position": place + number}
        for number, reason, raw in [
            ("2", "not an object but a number", b"7"),
            ("3", "not an object but a text", b'"text"'),
            ("4", "not an object but null", b"null"),
            ("5", "not an object but a list", b"[1,2]"),
            ("6", "the same key twice", b'{"id":2,"id":3}'),
            ("7", "NaN or Infinity, which JSON has not", b'{"id":NaN}'),
            ("8", "a text that is not UTF-8", b'{"id":"\xff"}'),
            ("9", "a text that is not UTF-8", b'{"id":"\\ud800"}'),
        ]
    ]
    assert batch.rejected["reason"].to_pylist()[-1] == "nested too deeply"
    assert batch.position["rows"] == 12


def test_a_page_of_nothing_but_rejects_is_a_batch(api):
    api.faults = [page_of(b"1", b"2")]
    (batch,) = read(by_time(api), {"cursor": "2020"})
    assert (batch.rows.num_rows, batch.rejected.num_rows) == (0, 2)


def test_a_contract_of_which_no_field_arrives_is_an_error(api):
    with pytest.raises(MendableError, match=r"shop\.sales: column amount, price") as caught:
        list(read(by_week(api, columns=("amount", "price")), {}))
    assert caught.value.arrived == "id, note, extra"
    assert "orchestration/defs/raw/shop/defs.yaml" in caught.value.mend


def test_a_record_without_any_field_is_still_a_row(api):
    api.records = [{}, {}]
    (batch,) = read(endpoint_of(api), {})
    assert batch.rows.num_rows == 2


def test_values_of_several_types_arrive_as_text_and_none_is_lost(api):
    api.weeks = {
        "2020-01-06": [
            {"id": 1, "note": "a"},
            {"id": "two", "note": 2},
            {"id": None, "note": {"k": [1]}},
            {"id": 2**70, "note": True},
        ]
    }
    (batch,) = read(by_week(api), {})
    assert batch.rows.select(["id", "note"]).to_pylist() == [
        {"id": "1", "note": "a"},
        {"id": "two", "note": "2"},
        {"id": None, "note": '{"k":[1]}'},
        {"id": str(2**70), "note": "true"},
    ]


# Tokens


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
    endpoint = by_week(api, token=token)
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_TOKEN") as caught:
        list(read(endpoint, {}))
    assert not isinstance(caught.value, SourceUnavailableError)
    assert arrived in caught.value.arrived
    assert "wr0ng" not in told(caught.value) + repr(endpoint)


def test_an_api_without_tokens_is_sent_none(api):
    api.token = ""
    assert ids(read(by_week(api, token=""), {})) == [1, 2, 3, 4, 5]
    assert not any("Authorization" in headers for headers in api.headers)


def test_a_password_in_netrc_is_not_sent_but_a_proxy_is_used_except_on_this_machine(
    tmp_path, monkeypatch
):
    (tmp_path / ".netrc").write_text("default login ann password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    for url, proxy in (
        ("http://api.example", "http://proxy.example:3128"),
        ("http://localhost:5000", None),
    ):
        with http_client.session(url, max_bytes=1, retry_after_max=1) as session:
            assert "Authorization" not in session.prepare_request(Request("GET", url)).headers
            used = session.merge_environment_settings(url, {}, None, None, None)["proxies"]
            assert used.get("http") == proxy


def test_a_user_and_password_in_the_url_are_sent_and_not_shown(api):
    api.token = ""
    endpoint = by_week(api, token="", base_url=api.url.replace("//", "//ann:s3cret%40@"))
    assert ids(read(endpoint, {})) == [1, 2, 3, 4, 5]
    assert {headers["Authorization"] for headers in api.headers} == {"Basic YW5uOnMzY3JldEA="}
    api.faults = [answering({}, 404)]
    with pytest.raises(MendableError) as caught:
        list(read(endpoint, {}))
    assert "s3cret" not in told(caught.value) + repr(endpoint)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_address_does_not_carry_the_token(api, api_of, status):
    other = api_of("page_number")
    other.token = ""
    api.faults = [answering({}, status, Location=f"{other.url}/sales?page=1")]
    paging = Pagination("single")
    assert ids(read(endpoint_of(api, pagination=paging), {})) == [0, 1]
    assert "Authorization" in api.headers[0]
    assert "Authorization" not in other.headers[0]


def credentials(api, **changes):
    spec = {
        "token_url": f"{api.url}/token",
        "client_id": "cl1ent",
        "client_secret": CLIENT_SECRET,
        "url_setting": "WATERSHED_SHOP_TOKEN_URL",
        "id_setting": "WATERSHED_SHOP_CLIENT",
        "secret_setting": "WATERSHED_SHOP_SECRET",
    }
    return ClientCredentials(**(spec | changes))


def by_oauth(api, **changes):
    return by_week(api, token="", oauth=credentials(api, **changes))


def test_client_credentials_are_exchanged_for_one_token(api):
    assert ids(read(by_oauth(api, scope="sales.read"), {})) == [1, 2, 3, 4, 5]
    assert api.tokens_given == 1
    assert api.requests[0] == "/token"


@pytest.mark.parametrize("expires_in", [0, -5])
def test_a_token_that_has_run_out_is_renewed(api, expires_in):
    api.expires_in = expires_in
    assert ids(read(by_oauth(api), {})) == [1, 2, 3, 4, 5]
    assert api.tokens_given == sum("token" not in path for path in api.requests)


@pytest.mark.parametrize("expires_in", [None, "soon", 1e300, [1]])
def test_a_token_that_does_not_say_how_long_it_lasts_is_used(api, expires_in):
    api.expires_in = expires_in
    assert ids(read(by_oauth(api), {})) == [1, 2, 3, 4, 5]
    assert api.tokens_given == 1


def test_a_token_that_is_revoked_while_it_reads_is_renewed_once(api):
    def between(served, number):
        if number == 4:
            served.token = "another"

    api.between = between
    assert ids(read(by_oauth(api), {})) == [1, 2, 3, 4, 5]
    assert api.tokens_given == 2
    api.between = lambda served, number: setattr(served, "token", "never right")
    with pytest.raises(MendableError, match="settings WATERSHED_SHOP_CLIENT and") as caught:
        list(read(by_oauth(api), {}))
    assert api.tokens_given == 4
    assert CLIENT_SECRET not in told(caught.value)


@pytest.mark.parametrize("fault", [answering({}, 503), answering({}, 429), *CUTS])
def test_getting_a_token_is_retried(api, fault):
    api.faults = [fault, fault]
    assert ids(read(by_oauth(api), {})) == [1, 2, 3, 4, 5]
    assert api.tokens_given == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (answering({"error": "invalid_client"}, 400), "credentials that it refuses"),
        (answering({}, 401), "settings WATERSHED_SHOP_CLIENT and WATERSHED_SHOP_SECRET"),
        (answering({}, 404), "HTTP 404"),
        (answering(b"<html>"), "bytes without one"),
        (answering({"token": "x"}), "bytes without one"),
        (answering({"access_token": None}), "bytes without one"),
        (answering({"access_token": ""}), "bytes without one"),
        (answering({"access_token": "x\nX-Injected: 1"}), "bytes without one"),
        (answering([1]), "bytes without one"),
        (answering({}, 307, Location="/elsewhere"), "redirects"),
        (answering(b" " * 2_000_000), "at most 1,048,576 bytes"),
    ],
)
def test_a_token_that_is_not_given_says_why_and_shows_no_secret(api, fault, said):
    api.faults = [fault]
    endpoint = by_oauth(api)
    with pytest.raises(MendableError) as caught:
        list(read(endpoint, {}))
    assert said in str(caught.value)
    assert not isinstance(caught.value, SourceUnavailableError)
    assert CLIENT_SECRET not in told(caught.value) + repr(endpoint)
    assert "cl1ent" not in told(caught.value) + repr(endpoint)
    assert api.requests == ["/token"]


def test_a_token_service_that_is_away_is_worth_another_try(api):
    away = f"http://127.0.0.1:{unused_port()}/token"
    with pytest.raises(SourceUnavailableError, match="WATERSHED_SHOP_TOKEN_URL"):
        list(read(by_oauth(api, token_url=away), {}))
    with pytest.raises(MendableError, match="setting WATERSHED_SHOP_TOKEN_URL"):
        list(read(by_oauth(api, token_url="nowhere"), {}))


def test_no_secret_is_in_any_log_position_or_print(api, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    api.faults = [answering({}, 503), cut_off, None, None, answering({}, 401)]
    endpoint = by_oauth(api)
    batches = list(read(endpoint, {}, batch_rows=1)) + list(read(by_week(api, token=api.token), {}))
    printed = capfd.readouterr()
    shown = caplog.text + printed.out + printed.err + repr(endpoint)
    shown += "".join(json.dumps(batch.position) + batch.where for batch in batches)
    assert not re.search(f"{CLIENT_SECRET}|token-[0-9]|cl1ent", shown)


# How it is described


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partitions": "/weeks"}, "partitions with partition"),
        ({"cursor": "updated_at"}, "cursor with start_param"),
        ({"partitions": "/w", "partition": "w", "cursor": "c", "start_param": "s"}, "both"),
        ({"partitions": "/w", "partition": "resume"}, "another name"),
        ({"pagination": Pagination("pages")}, "one of the paginations page_number, offset"),
        ({"pagination": Pagination(size=0)}, "a page size of at least 1"),
    ],
)
def test_a_description_that_contradicts_itself_names_the_fix(api, changes, said):
    with pytest.raises(MendableError, match=r"shop\.sales: how it is read") as caught:
        endpoint_of(api, **changes)
    assert said in str(caught.value)
    assert "defs.yaml" in caught.value.mend


def test_a_json_path_that_is_none_names_the_fix(api):
    with pytest.raises(MendableError, match="a JSON path such as"):
        list(read(endpoint_of(api, records="data[["), {}))


# Alone


def test_reading_sends_nothing_elsewhere_and_writes_no_file(api, tmp_path):
    """In a process of its own, where dlt is imported for the first time."""
    program = f"""
import sys
def watch(event, args):
    if event == "open" and args[2] & 0o103 and args[0] != "/dev/null":
        print("writes", args[0])
    if event == "socket.connect" and args[1][0] != "127.0.0.1":
        print("connects to", args[1])
    if event == "open" and ".dlt" in str(args[0]):
        print("reads", args[0])
sys.dont_write_bytecode = True
sys.addaudithook(watch)
from orchestration.connectors.rest_api import Pagination, RestEndpoint, read
endpoint = RestEndpoint(
    base_url={api.url!r}, path="/sales", system="s", table="t", url_setting="U",
    token={TOKEN!r}, partitions="/weeks", partition="week", pagination=Pagination(size=2),
)
print(sum(batch.rows.num_rows for batch in read(endpoint, {{}})))
import dlt.common.logger, threading
print(dlt.common.logger.LOGGER, threading.active_count())
"""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.stdout, ran.stderr) == ("5\nNone 1\n", "")
    assert list(tmp_path.iterdir()) == []


# Any pages, any faults, any crashes

passing = st.sampled_from(
    [answering({}, 429), answering({}, 500), answering({}, 503, Retry_After="3"), *CUTS]
)
"""What may meet a request, and be gone the next time."""


@pytest.fixture(scope="module")
def apis():
    """One API of each pagination, for the examples of a test to share."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield {kind: stack.enter_context(serving(FaultyApi(kind))) for kind in KINDS}


def reset(api, most, faults=()):
    api.most, api.faults, api.between = most, list(faults), lambda served, number: None
    api.requests.clear()
    api.headers.clear()


def ruled(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@ruled(150)
@given(data=st.data())
def test_every_record_arrives_once_whatever_pages_faults_and_crashes(apis, sleeps, data):
    kind = data.draw(st.sampled_from(KINDS))
    of = data.draw(st.sampled_from([by_week, by_time, endpoint_of]))
    api = apis[kind]
    sizes = data.draw(st.lists(st.integers(0, 7), max_size=4))
    weeks = {f"w{number}": size for number, size in enumerate(sizes)}
    serial = iter(range(100))
    api.weeks = {week: [{"id": next(serial)} for _ in range(n)] for week, n in weeks.items()}
    api.records = records_of(sum(sizes))
    # Never more faults in a row than there are retries.
    faults = data.draw(st.lists(st.one_of(st.none(), passing), max_size=12))
    faults = [fault for n, fault in enumerate(faults) for fault in [fault, *[None] * (n % 4 == 3)]]
    reset(api, data.draw(st.integers(1 + (kind == "offset"), 4)), faults)
    batch_rows = data.draw(st.integers(1, 8))
    seen, position = [], {}
    crashes = data.draw(st.lists(st.integers(0, 2), max_size=6))
    for crash_after in [*crashes, 1_000]:
        landing = []
        batches = read(of(api, columns=()), position, batch_rows=batch_rows)
        for batch in islice(batches, crash_after):
            landing += ids([batch])
            if batch.completes:
                seen, position, landing = seen + landing, json.loads(json.dumps(batch.position)), []
        batches.close()
    event(f"{kind}, {of.__name__}, {len(crashes)} crashes")
    assert set(seen) == set(range(sum(sizes)))
    if of is by_time and seen:  # once it is through, ties at the last value come again
        last = max(record["updated_at"] for record in api.records)
        seen = [i for i in seen if api.records[i]["updated_at"] != last]
    assert len(seen) == len(set(seen))


@ruled(150)
@given(data=st.data())
def test_no_record_is_passed_over_when_others_come_go_and_move_meanwhile(apis, sleeps, data):
    api = apis["offset"]
    api.records = records_of(data.draw(st.integers(2, 14)))
    reset(api, data.draw(st.integers(2, 5)))
    present, serial = {record["id"] for record in api.records}, count(100)
    changes = data.draw(
        st.lists(st.tuples(st.sampled_from(["insert", "delete", "move"]), st.integers(0, 13)),
                 max_size=rest_pages.MAX_RESTARTS)
    )  # fmt: skip
    at = sorted(
        data.draw(st.lists(st.integers(2, 12), min_size=len(changes), max_size=len(changes)))
    )

    def between(served, number):
        while at and at[0] <= number:
            at.pop(0)
            change, index = changes.pop(0)
            index %= max(len(served.records), 1)
            if change == "insert":
                served.records.insert(index, {"id": next(serial), "updated_at": "2020-01-01"})
            elif served.records:
                moved = served.records.pop(index)
                if change == "move":
                    served.records.append(moved | {"updated_at": "2020-02-01"})
                else:
                    present.discard(moved["id"])

    api.between = between
    seen, position = set(), {}
    crash_after = data.draw(st.integers(0, 4))
    for batch in read(by_time(api), {}, batch_rows=2):
        seen |= set(ids([batch]))
        position = batch.position
        if not crash_after:
            break
        crash_after -= 1
    seen |= set(ids(read(by_time(api), position, batch_rows=2)))
    assert present <= seen


def test_the_batch_is_bounded_by_its_bytes_too(api, monkeypatch):
    monkeypatch.setattr(rest_api, "BATCH_BYTES", 100)
    assert len(list(read(by_time(api), {}))) == 5


def test_the_batch_is_bounded_by_its_cells_too(api, monkeypatch):
    api.records = [{"updated_at": "2020", f"field {i}": i} for i in range(8)]
    monkeypatch.setattr(rest_api, "BATCH_CELLS", 20)
    batches = list(read(by_time(api, columns=()), {}))
    assert [batch.rows.num_rows for batch in batches] == [4, 4]


def test_values_used_as_names_are_told_from_fields(api, monkeypatch):
    monkeypatch.setattr(rest_api, "MAX_CELLS", 1_000)
    api.records = [{f"ann{i}@example.com": i} for i in range(40)]
    api.most = 40
    with pytest.raises(MendableError, match="40 records with 40 different fields") as caught:
        list(read(endpoint_of(api, columns=()), {}))
    assert "ann" not in told(caught.value)


def test_a_record_of_ten_thousand_fields_arrives(api):
    api.records = [{f"field {i}": i for i in range(10_000)}]
    (batch,) = read(endpoint_of(api, columns=()), {})
    assert batch.rows.num_columns == 10_001


def living_pages():
    return sum(isinstance(thing, rest_pages.Page) for thing in gc.get_objects())


@pytest.mark.parametrize("of", [by_week, by_time, endpoint_of])
def test_pages_are_let_go_without_waiting_for_the_garbage_collector(api, of):
    list(read(of(api), {}))
    gc.collect()
    gc.disable()
    try:
        living = [living_pages() for _ in read(of(api), {}, batch_rows=1)]
        assert max(living) <= 2
        assert living_pages() == 0
    finally:
        gc.enable()
