"""How long the definitions take to load, against the bare import of dagster and dagster-dbt."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.timing import in_turn, row


def measure(runs: int = 7) -> Iterator[tuple[str, ...]]:
    """One row; the manifest exists, as it does after any command that starts Dagster."""
    loaded, imported = in_turn(
        runs,
        ["-c", "from orchestration.definitions import definitions; definitions()"],
        ["-c", "import dagster, dagster_dbt"],
    )
    yield row("definitions load / import of dagster and dagster-dbt", loaded, imported, 1.5)
