"""The page for the business in a real browser: every screen opens, answers its question, and loads nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from tests.integration.small_house import BIN, ROOT, built_house

CHROMIUM = os.environ.get("TEST_CHROMIUM") or shutil.which("chromium")
SCREENS = {
    "Customers": "Whom do we address with which campaign this month?",
    "Fraud": "How many cards do we investigate a day, and which first?",
    "Machines": "Which machine do we visit next?",
    "System": "Can I trust today's numbers?",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with built_house(tmp_path_factory.mktemp("house")) as house:
        assert house.first.returncode == 0, house.first.stdout + house.first.stderr
        yield house


@pytest.fixture(scope="module")
def page_url(house, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = {n: v for n, v in os.environ.items() if not n.startswith("WATERSHED_")}
    environment = {**outside, **house.environment, "WATERSHED_PAGE_PORT": str(port)}
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [BIN / "watershed", "page"], cwd=ROOT, env=environment, stdout=said, stderr=said
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health"):
                break
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    yield url
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no chromium; `.ci/servers.py --install` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Screen:
    """A tab of the browser on the page, and every address that it asked for."""

    def __init__(self, browser, url: str, width: int, scheme: str = "light") -> None:
        self.tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.tab.set_default_timeout(60_000)
        self.url, self.asked, self.errors = url, [], []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(url)
        self.settled("Customers")

    def go(self, name: str) -> None:
        """To another screen, by its tab; on a narrow window the tabs are behind a button."""
        opener = self.tab.get_by_test_id("stExpandSidebarButton")
        if opener.is_visible():
            opener.click()
        self.tab.get_by_role("link", name=name).click()
        closer = self.tab.get_by_test_id("stSidebarCollapseButton")
        if closer.is_visible():
            closer.get_by_role("button").click()
        self.settled(name)

    def settled(self, name: str) -> None:
        """Wait until the screen stands; there must be no error on it."""
        self.tab.get_by_role("heading", name=SCREENS[name]).wait_for()
        self.tab.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
        assert self.tab.get_by_test_id("stException").count() == 0
        assert self.tab.get_by_text("encountered an error").count() == 0

    @property
    def text(self) -> str:
        return self.tab.get_by_test_id("stMain").inner_text()

    def value(self, label: str) -> str:
        metric = self.tab.get_by_test_id("stMetric").filter(has_text=label)
        return metric.get_by_test_id("stMetricValue").inner_text()


@pytest.fixture
def screen(browser, page_url):
    opened = Screen(browser, page_url, 1280)
    yield opened
    opened.tab.close()


def test_customers_says_who_is_in_which_segment_and_hands_out_the_list(screen, house, tmp_path):
    assert "r1" in screen.text
    (households,) = house.rows(
        "select count(*) from published.customer_segments"
        " where as_of_at = (select max(as_of_at) from published.customer_segments)"
    )[0]
    assert f"{households} households" in screen.text
    segments = house.rows(
        "select segment_name, households_count from published.mon_segments__monthly"
        " where as_of_at = (select max(as_of_at) from published.mon_segments__monthly)"
        " order by revenue_usd desc"
    )
    name, members = segments[-1]
    screen.tab.get_by_test_id("stSelectbox").locator("input").click()
    screen.tab.get_by_role("option", name=name, exact=True).click()
    button = screen.tab.get_by_role("button", name=f"Download the {members:,} households")
    button.wait_for()
    with screen.tab.expect_download() as download:
        button.click()
    file = tmp_path / "list.csv"
    download.value.save_as(file)
    header, *rows = file.read_text().splitlines()
    assert header == "household_id,confidence"
    assert len(rows) == members
    expected = house.rows(
        "select household_id from published.customer_segments where"
        " as_of_at = (select max(as_of_at) from published.customer_segments)"
        f" and segment_name = '{name}'"
    )
    assert {int(row.partition(",")[0]) for row in rows} == {number for (number,) in expected}


def test_fraud_says_what_a_capacity_saves_and_the_slider_moves_it(screen, house):
    screen.go("Fraud")
    saved, cost = house.rows(
        """
        with days as (
            from published.mon_fraud_detection__saved where is_champion
            qualify dense_rank() over (order by as_of_at desc) <= 4
        )
        select avg(saved_amount), avg(investigation_cost) from days
        """
    )[0]
    assert screen.value("Saved a day") == f"{saved:,.0f}"
    assert screen.value("Costs a day") == f"{cost:,.0f}"
    screen.tab.get_by_role("slider").press("ArrowLeft")
    screen.tab.get_by_text("of 99 cards looked at").wait_for()
    screen.settled("Fraud")
    assert screen.value("Costs a day") == f"{cost * 99 / 100:,.0f}"
    assert "Look at these first" in screen.text


def test_machines_names_the_one_to_visit_and_shows_another_when_asked(screen, house):
    screen.go("Machines")
    told = screen.tab.get_by_test_id("stAlertContainer").inner_text()
    machines = [
        name
        for (name,) in house.rows(
            "select distinct machine_id from published.feat_machine__history order by 1"
        )
    ]
    found = re.search(r"(?:Visit|Closest to one is) (\S+?)(?: next)?:", told)
    assert found
    assert found.group(1) in machines
    other = next(name for name in machines if name != found.group(1))
    screen.tab.get_by_test_id("stSelectbox").locator("input").click()
    screen.tab.get_by_role("option", name=other, exact=True).click()
    screen.tab.get_by_text(f"{other}: failure probability").wait_for()
    screen.settled("Machines")


def test_system_counts_the_targets_that_are_met(screen, house):
    screen.go("System")
    ((met, all_of_them),) = house.rows(
        "select count(*) filter (where is_met), count(*) from published.mon_metrics__current"
        " where value is not null"
    )
    assert screen.value("Targets met") == f"{met} of {all_of_them}"
    assert "Release r1 passed every check" in screen.text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_every_screen_opens_on_a_phone_and_in_the_dark_and_asks_nobody_else(
    browser, page_url, width, scheme
):
    screen = Screen(browser, page_url, width, scheme)
    for name in SCREENS:
        screen.go(name)
        main = screen.tab.get_by_test_id("stMain")
        assert main.evaluate("main => main.scrollWidth <= main.clientWidth")
    elsewhere = [url for url in screen.asked if not url.startswith((page_url, "data:", "blob:"))]
    assert not elsewhere
    assert not screen.errors
    screen.tab.close()
