"""Timing whole processes in turn, so that a ratio holds when the machine's speed drifts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Run(NamedTuple):
    """What one process took: wall seconds, and the most memory it held (MB, resident)."""

    seconds: float
    peak_mb: float


def run(
    command: Sequence[str | Path], cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> Run:
    """One run of a command that must succeed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **(environment or {})},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command}\n{said.read().decode(errors='replace')}")
    return Run(took, usage.ru_maxrss / 1024)


def seconds(
    command: Sequence[str | Path], cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> float:
    """Wall time of one run of a command that must succeed."""
    return run(command, cwd, environment).seconds


def in_turn(runs: int, first: Sequence[str], second: Sequence[str]) -> tuple[float, float]:
    """Medians of two Python commands run A B A B ..., after one run of each that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for command, found in zip((first, second), times, strict=True):
            took = seconds([sys.executable, *command])
            if turn:
                found.append(took)
    return statistics.median(times[0]), statistics.median(times[1])


def row(claim: str, measured: float, against: float, to_reach: float) -> tuple[str, ...]:
    """A line of the table."""
    return (
        claim,
        f"{measured:.1f} s",
        f"{against:.1f} s",
        f"{measured / against:.2f}",
        f"<= {to_reach:g}",
    )
