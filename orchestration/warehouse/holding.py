"""Rows in hand: who will write rows that it read before holds this, and nobody is forgotten meanwhile.

A step, dbt, a build or a rebuild may hold a person's rows in memory and write them after they were removed. So
each has a share of one lock of the operating system, which a killed process leaves by itself, and forgetting
takes it alone. Landing needs none: it asks who was forgotten within the transaction that writes. With a
catalog in PostgreSQL the lock is of one machine: what runs on others is for people to stop.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from orchestration.errors import WarehouseBusyError
from orchestration.settings import Settings
from orchestration.warehouse.connect import require_writable


@contextmanager
def holding_rows(settings: Settings, doing: str) -> Iterator[None]:
    """Nobody is forgotten while the block runs; others may hold rows as well.

    Args:
        settings: which warehouse.
        doing: a few words for the error, such as `the rebuild of r3`.

    Raises:
        WarehouseBusyError: somebody was still being forgotten after `lock_timeout_seconds`.
    """
    with hold_rows(settings, doing):
        yield


def hold_rows(settings: Settings, doing: str) -> IO[bytes]:
    """As `holding_rows`, until the file that is returned is closed, or the process ends."""
    return _locked(
        settings,
        fcntl.LOCK_SH,
        thing=doing,
        expected="nobody being forgotten meanwhile",
        arrived="somebody is being forgotten",
    )


@contextmanager
def nobody_holding_rows(settings: Settings) -> Iterator[None]:
    """Nobody holds rows, or begins to, while the block runs.

    Raises:
        WarehouseBusyError: somebody still did after `lock_timeout_seconds`.
    """
    with _locked(
        settings,
        fcntl.LOCK_EX,
        thing="forgetting a person",
        expected="no build, dbt, step of the graph or rebuild, which may hold rows and write them afterwards",
        arrived="one is at work",
    ):
        yield


def _locked(settings: Settings, how: int, *, thing: str, expected: str, arrived: str) -> IO[bytes]:
    """The lock's file, locked; closing it unlocks it."""
    beside = settings.catalog_file or settings.data_dir / "catalog"
    require_writable(beside.parent)
    file = beside.with_suffix(".rows.lock").open("ab")
    began = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() - began >= settings.lock_timeout_seconds:
                    raise WarehouseBusyError(
                        thing,
                        expected=expected,
                        arrived=f"{arrived}, and was still after {settings.lock_timeout_seconds:g} s",
                        mend="wait until it has finished, then run the command again "
                        "(WATERSHED_LOCK_TIMEOUT_SECONDS sets how long to wait)",
                    ) from None
            time.sleep(0.05)
    except BaseException:
        file.close()
        raise
