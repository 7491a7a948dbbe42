"""What the benchmarks of the two streams share: landing beside the scorer, as `make stream` has it, and what it landed.

Latencies on a machine that does other things tell of these: `chrt -r 10` before the command keeps them away.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np

from orchestration.settings import Settings
from orchestration.warehouse.connect import connect


def landing(
    settings: Settings, url_variable: str, url: str, topics: Sequence[str], *, paced: bool
) -> subprocess.Popen[bytes]:
    """The process that lands.

    Where `chrt -r` rules out niceness, a paced one is taken out of it: it makes way for the scorer, as
    with `make stream`, and what it takes is not held against the real-time share of the processors.
    """
    watershed = str(Path(sys.executable).parent / "watershed")
    environment = {**os.environ, "WATERSHED_DATA_DIR": str(settings.data_dir), url_variable: url}
    process = subprocess.Popen([watershed, "follow", "--with-parent", *topics], env=environment)
    if paced and os.sched_getscheduler(0) == os.SCHED_RR:
        os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
    return process


def landed(settings: Settings, table: str) -> int:
    """How many rows of a raw table have landed."""
    with connect(settings, read_only=True) as connection:
        try:
            row = connection.execute(f"select count(*) from raw.{table}").fetchone()
        except duckdb.CatalogException:  # not yet made
            return 0
    return int(row[0]) if row is not None else 0


def quantiles(values: Sequence[float], digits: int = 1) -> str:
    """The median and the 99th percentile."""
    return f"{np.quantile(values, 0.5):.{digits}f} / {np.quantile(values, 0.99):.{digits}f}"
