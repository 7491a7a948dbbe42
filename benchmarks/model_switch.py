"""Promotion and rollback of a model: from the call to the moment a stream scores with the other model.

.venv/bin/python -m benchmarks.model_switch

A follower asks for its champion as the stream's engine does before each score. The limit is the write that says
so: one transaction in the warehouse.
"""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table

TURNS = 25


def measure() -> list[tuple[str, str, str]]:
    """What, measured in seconds, to reach."""
    from orchestration.registry import decisions
    from orchestration.registry.register import register
    from orchestration.settings import load_settings
    from orchestration.streaming.fraud_scoring import champion_of
    from orchestration.warehouse.connect import connect
    from tests.unit.registry.released_models import MODELS, USE_CASE, fill

    settings = load_settings()
    one = fill(settings)
    with connect(settings) as connection:
        register(connection, settings, one)
    switched: dict[str, list[float]] = {"promoted": [], "rolled back": []}
    with champion_of(settings, lambda line: None) as champion:
        champion()
        for _ in range(TURNS):
            for what, move in (
                (
                    "promoted",
                    lambda: decisions.promote(settings, MODELS[1].version, "a trial", "bench"),
                ),
                ("rolled back", lambda: decisions.demote(settings, USE_CASE, "", "over", "bench")),
            ):
                began = time.perf_counter()
                after = move().champion_after
                while champion().version != after:
                    time.sleep(0.001)
                switched[what].append(time.perf_counter() - began)
    times = []
    with connect(settings) as connection:
        for number in range(TURNS):
            began = time.perf_counter()
            connection.execute(f"create or replace table raw.bench as select {number} as n")
            times.append(time.perf_counter() - began)
    return [
        *(
            (f"{what}, {len(took)} times, s p50 / max", _told(took), "1")
            for what, took in switched.items()
        ),
        ("one transaction in the warehouse, s p50 / max", _told(times), "the limit"),
    ]


def _told(seconds: list[float]) -> str:
    return f"{np.median(seconds):.3f} / {max(seconds):.3f}"


def main() -> None:
    """Run it in a warehouse of its own; takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WATERSHED_DATA_DIR"] = folder
        table = Table("claim", "measured", "to reach")
        for row in measure():
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()
