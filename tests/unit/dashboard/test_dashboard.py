"""The page shows one release, follows the one in force, and says so when there is nothing to show."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from orchestration.dashboard import fraud
from orchestration.dashboard.published import MovedError, Published, Reading
from orchestration.errors import MendableError
from orchestration.warehouse.connect import connect
from orchestration.warehouse.releases import move, release

CHECKS = {"checks_passed": 3, "checks_warned": 1}
SCREENS = ("segmentation", "fraud", "maintenance", "system")


@pytest.fixture
def lake(settings):
    with connect(settings) as connection:
        for schema in ("raw", "features", "predictions", "monitoring"):
            connection.execute(f"create schema {schema}")
        connection.execute("create table features.feat_a as select 1 as build")
        release(connection, settings, **CHECKS)
        yield connection


def shown(name: str) -> AppTest:
    """A screen, as Streamlit runs it."""
    script = f"""
from orchestration.dashboard import {name}
from orchestration.dashboard.published import Published, Reading
from orchestration.settings import load_settings
published = Published(load_settings())
{name}.show(Reading(published.releases(), published.rows))
"""
    return AppTest.from_string(script, default_timeout=30).run()


def test_what_is_remembered_of_one_release_is_never_another_ones(lake, settings):
    published = Published(settings)
    reading = Reading(published.releases(), published.rows)
    assert reading.release.name == "r1"
    assert reading.rows("select build from feat_a").item() == 1
    lake.execute("create or replace table features.feat_a as select 2 as build")
    assert reading.rows("select build from feat_a").item() == 1
    release(lake, settings, **CHECKS)
    with pytest.raises(MovedError):
        reading.rows("select build from feat_a")
    after = Reading(published.releases(), published.rows)
    assert (after.release.name, after.rows("select build from feat_a").item()) == ("r2", 2)
    move(lake, settings, "r1")
    assert Reading(published.releases(), published.rows).release.name == "r1"


def test_the_page_cannot_write(lake, settings):
    published = Published(settings)
    with pytest.raises(Exception, match="read-only"):
        published.rows("r1", "create table lake.features.mine as select 1 as x")


def test_without_a_release_it_says_what_to_do(settings):
    with connect(settings), pytest.raises(MendableError, match="make demo"):
        Published(settings).releases()


def test_a_screen_without_its_tables_says_that_there_is_nothing_yet(lake):
    for name in SCREENS:
        screen = shown(name)
        assert not screen.exception, name
        assert [title.value[-1] for title in screen.title] == ["?"], name
        assert screen.info, name


def test_a_capacity_saves_what_the_cards_with_the_highest_scores_were_defrauded_of(lake, settings):
    # A day with its only fraud in the second place, and one with it in the third.
    lake.execute(
        """
        create table predictions.fraud_backtest as
        select timestamp '2018-06-04' as as_of_at, algorithm, customer_id, score, label, amount,
            made_at as transaction_at
        from (values
            ('lightgbm', 1, 0.9, false, 10.00, timestamp '2018-06-04 01:00'),
            ('lightgbm', 3, 0.1, true, 30.00, timestamp '2018-06-04 02:00'),
            ('lightgbm', 3, 0.8, true, 50.00, timestamp '2018-06-04 03:00'),
            ('lightgbm', 2, 0.2, true, 99.00, timestamp '2018-06-05 01:00'),
            ('lightgbm', 4, 0.7, false, 7.00, timestamp '2018-06-05 02:00'),
            ('lightgbm', 5, 0.6, false, 7.00, timestamp '2018-06-05 02:00'),
            ('logistic_regression', 6, 1.0, true, 1000.00, timestamp '2018-06-05 02:00')
        ) as rows (algorithm, customer_id, score, label, amount, made_at)
        """
    )
    lake.execute(
        """
        create table monitoring.mon_fraud_detection__saved as
        select timestamp '2018-06-04' as as_of_at, algorithm, algorithm = 'lightgbm' as is_champion,
            cast(day as date) as payment_date, 2 as cards_investigated_count,
            cast(40 as double) as saved_amount, cast(10 as double) as investigation_cost
        from (values ('lightgbm'), ('logistic_regression')) as a (algorithm),
            (values ('2018-06-04'), ('2018-06-05')) as d (day)
        """
    )
    release(lake, settings, **CHECKS)
    published = Published(settings)
    curve = published.rows("r2", fraud._BY_CAPACITY)
    assert curve["cards"].to_list() == [1, 2, 3]
    assert curve["saved_per_day"].to_list() == [0, 40, 89.5]
    assert curve["found_per_day"].to_list() == [0, 0.5, 1]
    assert curve["stolen_per_day"].to_list() == [89.5] * 3
    screen = shown("fraud")
    assert not screen.exception
    metrics = {metric.label: metric.value for metric in screen.metric}
    assert (metrics["Saved a day"], metrics["Costs a day"], metrics["Left over a day"]) == (
        "40",
        "10",
        "30",
    )
    assert "**3 cards a day**" in screen.markdown[0].value
    screen.slider[0].set_value(3).run()
    assert {m.label: m.value for m in screen.metric}["Left over a day"] == "74"
