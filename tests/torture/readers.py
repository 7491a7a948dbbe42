"""Readers beside writers by hand: `python -m tests.torture.readers --minutes 60`.

On a copy of a built warehouse (WATERSHED_DATA_DIR, or the data folder): one process lands rows, another runs
`dbt build` again and again, one releases and rolls back, the Dagster UI answers queries, and eight processes read
`published`. What counts is that nobody is told of a lock, and that every reader sees one whole release.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import duckdb

from orchestration.build import DBT
from orchestration.settings import PROJECT_ROOT, load_settings
from orchestration.warehouse.connect import connect, transaction, writing
from orchestration.warehouse.releases import move, release, releases

READERS = 8
UP_WITHIN_SECONDS = 300


def land(seconds: float) -> Counter[str]:
    """Append small batches to a raw table, as a stream does."""
    done: Counter[str] = Counter()
    settings, until = load_settings(), time.monotonic() + seconds
    with connect(settings) as connection:
        with writing(settings, "preparing"):
            connection.execute("create table if not exists raw.torture__events (number bigint)")
        while time.monotonic() < until:
            with writing(settings, "landing torture.events"), transaction(connection):
                connection.execute("insert into raw.torture__events from range(50)")
            done["commits"] += 1
            time.sleep(0.5)
    return done


def release_and_roll(seconds: float) -> Counter[str]:
    """Change a marked pair of tables together, release, roll back and forward."""
    done: Counter[str] = Counter()
    settings, until = load_settings(), time.monotonic() + seconds
    number = 1
    with connect(settings) as connection:
        while time.monotonic() < until:
            mark_and_release(connection, settings, number)
            for step in (-1, 1):
                move(connection, settings, step)
            done["releases"] += 1
            done["moves"] += 2
            number += 1
            time.sleep(1)
    return done


def mark_and_release(connection: duckdb.DuckDBPyConnection, settings: object, number: int) -> None:
    with writing(settings, "marking"):  # type: ignore[arg-type]
        for table in (
            "torture_a",
            "torture_b",
        ):  # two commits: between them the warehouse is a mixture
            connection.execute(
                f"create or replace table features.{table} as select {number} as build"
            )
    release(connection, settings, checks_passed=0, checks_warned=0)  # type: ignore[arg-type]


def read(seconds: float) -> Counter[str]:
    """Read both marked tables in one query, and a training set; each with a new connection, as people do."""
    done: Counter[str] = Counter()
    settings, until = load_settings(), time.monotonic() + seconds
    while time.monotonic() < until:
        with connect(settings, read_only=True) as connection:
            for _ in range(20):
                ((kinds,),) = connection.execute(
                    "select count(distinct build) from"
                    " (from published.torture_a union all from published.torture_b)"
                ).fetchall()
                done["reads"] += 1
                done["mixtures"] += kinds != 1
                time.sleep(0.05)
            connection.execute(
                "select count(*) from published.train_customer_segmentation"
            ).fetchall()
    return done


def dbt(seconds: float) -> Counter[str]:
    """`dbt build` of a use case's staging to training set, again and again."""
    done: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ran = subprocess.run(
            [DBT, "--quiet", "build", "--select", "+feat_household__campaigns", "--exclude-resource-type", "unit_test"],
            cwd=PROJECT_ROOT / "dbt_project", capture_output=True, text=True,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError((ran.stdout + ran.stderr)[-2000:])
        done["dbt builds"] += 1
    return done


def look(seconds: float) -> Counter[str]:
    """Start the UI, and ask it for the graph with its versions, as the browser does.

    Prints a line once it has answered; the seconds count from there.
    """
    done: Counter[str] = Counter()
    port = free_port()
    with tempfile.TemporaryFile("w+") as said:
        ui = subprocess.Popen(
            [str(Path(sys.executable).parent / "watershed"), "ui", "--port", str(port)],
            stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + UP_WITHIN_SECONDS
            while time.monotonic() < until and ui.poll() is None:
                if ask_for_the_graph(port):
                    if not done:
                        print("the UI answers", flush=True)
                        until = time.monotonic() + seconds
                    done["ui answers"] += 1
                elif done:
                    done["ui silences"] += 1
                time.sleep(2)
            if not done or ui.poll() is not None:
                said.seek(0)
                how = "does not answer" if ui.poll() is None else f"ended with {ui.returncode}"
                raise RuntimeError(f"the UI {how}; it said: {said.read()[-2000:]}")
        finally:
            if ui.poll() is None:
                # As Ctrl-C: dg ends its services on no other signal.
                os.killpg(ui.pid, signal.SIGINT)
                ui.wait()
    return done


def ask_for_the_graph(port: int) -> bool:
    """Whether the UI answers with the assets; what it cannot answer is an error."""
    query = "{assetNodes{assetKey{path} staleStatus staleCauses{reason} assetMaterializations(limit:1){timestamp}}}"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.loads(answer.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    if "errors" in told:
        raise RuntimeError(json.dumps(told["errors"])[:2000])
    return bool(told["data"]["assetNodes"])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


PARTS = {"land": land, "release_and_roll": release_and_roll, "dbt": dbt, "look": look, "read": read}


def run(data: Path, seconds: float, parts: dict[str, int]) -> tuple[Counter[str], list[str]]:
    """Let so many processes of each part work on the warehouse at `data` side by side.

    Returns:
        What they did, and what went wrong, one text per process.
    """
    # Writers of the embedded catalog take turns by the table; a release waits until dbt has ended. The UI serves
    # the demo's API beside it: at a port of its own, since at the default one another house's may answer.
    environment = {
        **os.environ, "WATERSHED_DATA_DIR": str(data), "WATERSHED_LOCK_TIMEOUT_SECONDS": "900",
        "WATERSHED_CAMPAIGN_API_URL": f"http://127.0.0.1:{free_port()}",
        "WATERSHED_CAMPAIGN_API_TOKEN": "of-the-torture",
    }  # fmt: skip
    running: list[subprocess.Popen[str]] = []
    # The UI first: the others begin once it answers, so that all work side by side.
    for part in sorted(parts, key="look".__ne__):
        for _ in range(parts[part]):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.readers", "--part", part, "--minutes", str(seconds / 60)],
                cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            running.append(process)
            if part == "look":
                process.stdout.readline()  # type: ignore[union-attr]
    done: Counter[str] = Counter()
    wrong = []
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            wrong.append(f"{process.args[4]}: {err[-2000:]}")  # type: ignore[index]
        else:
            done.update(json.loads(out.splitlines()[-1]))
    return done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.minutes * 60)))
        return 0
    settings = load_settings()
    with tempfile.TemporaryDirectory(prefix="readers-", ignore_cleanup_errors=True) as place:
        data = Path(place) / "data"
        shutil.copytree(settings.data_dir, data)
        own = load_settings(data_dir=data, catalog="", lake_path="")
        with connect(own) as connection:
            mark_and_release(connection, own, 0)
            before = len(releases(connection))
        done, wrong = run(
            data, given.minutes * 60,
            {"land": 1, "release_and_roll": 1, "dbt": 1, "look": 1, "read": READERS},
        )  # fmt: skip
    print(f"{given.minutes:g} minutes, from {before} releases on: {dict(done)}")
    for text in wrong:
        print(f"WRONG  {text}")
    locks = sum("locked" in text or "Busy" in text for text in wrong)
    print(
        f"lock errors: {locks}; other errors: {len(wrong) - locks}; mixtures seen: {done['mixtures']}"
    )
    return int(bool(wrong) or done["mixtures"] > 0 or not done["ui answers"])


if __name__ == "__main__":
    sys.exit(main())
