"""SIGKILL at any moment loses no row and brings none twice, for each kind of source; see tests/torture/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = {"relational": "postgresql", "stream": "kafka"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, which one that has opened a DuckDB connection must not."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", ["relational", "rest", "files", "stream"])
def test_no_kill_loses_or_duplicates_a_row(kind):
    server = SERVER.get(kind)
    if server and not os.environ.get(variable := f"TEST_{server.upper()}_URL"):
        pytest.skip(f"{variable} names no server; `make services` starts one")
    done = run("-m", "tests.torture", kind, "--kills", "200")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("sabotage", "kills", "noticed"),
    [
        # Only a kill at one of the steps after it shows this; every second kill is at a step, by name.
        ({"update landing.positions": "commit; begin"}, 60, "are there"),
        ({"insert into raw": "delete from raw.torture__events where id = 7"}, 12, "1 rows lost"),
    ],
    ids=["rows committed before their position", "a row lost"],
)
def test_the_kill_test_notices_a_loader_that_is_broken(tmp_path, sabotage, kills, noticed):
    script = f"""
from pathlib import Path
from tests.torture.harness import Told, torture
from tests.torture.sources import sqlite
folder, told = Path({str(tmp_path)!r}), Told()
(folder / "data").mkdir()
torture(sqlite(folder), folder, {kills}, 1, told, sabotage={sabotage!r}.get)
print(told.wrong)
"""
    done = run("-c", script)
    assert noticed in done.stdout, done.stdout + done.stderr
