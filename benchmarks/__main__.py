"""The benchmarks that need no server and only minutes, as a table; each other says in its first lines how it runs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks import definitions_load, fraud_features, full_graph, maintenance_features


def main() -> None:
    """Run all; takes a few minutes on two cores."""
    table = Table("claim", "measured", "against", "ratio", "to reach")
    for module in (definitions_load, full_graph, fraud_features, maintenance_features):
        for row in module.measure():
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
