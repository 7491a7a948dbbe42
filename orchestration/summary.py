"""The table a build ends with: what exists now, how it fared, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestration.errors import MendableError
from orchestration.layers import LAYERS
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect

if TYPE_CHECKING:
    import duckdb
    from rich.console import Console

    from orchestration.build import Built


_KNOWN_AS_FRAUD = "is_fraud and superseded_at is null"


def print_summary(console: Console, settings: Settings, built: Built) -> None:
    """Print rows per layer, the latest segments, fraud detection, machines, checks, seconds, and the next commands.

    What failed is always said, also when there is no warehouse yet or it cannot be read.
    """
    import duckdb
    from rich.markup import escape

    failures = list(built.failures)
    try:
        if settings.catalog_file is None or settings.catalog_file.exists():
            with connect(settings, read_only=True) as connection:
                console.print()
                _layers(console, connection)
                _segments(console, connection)
                _fraud(console, connection)
                _machines(console, connection)
    except (MendableError, duckdb.Error) as error:
        if built.succeeded:
            raise
        failures.append(str(error))
    for failure in failures:
        console.print(f"\n[red]failed[/] {escape(failure)}", soft_wrap=True)
    for check in built.checks_warned + built.checks_failed:
        console.print(f"  [yellow]![/] {check}", soft_wrap=True)
    if built.checks_warned or built.checks_failed:
        console.print("    its page in make ui says what it claims and how to see the rows")
    outcome = "[green]all is built[/]" if built.succeeded else "[red]the build stopped[/]"
    console.print(
        f"\n{outcome}: {built.assets} assets materialised, {built.checks_passed} checks passed, "
        f"{len(built.checks_warned)} warned, {len(built.checks_failed)} failed, "
        f"in {built.seconds:.0f} s",
        soft_wrap=True,
    )
    if built.released:
        console.print(
            f"released as [bold]{built.released.name}[/]: {built.released.rows_count:,} rows,"
            " what readers of the schema published see from now on",
            soft_wrap=True,
        )
    if built.in_force:
        console.print(f"models newly in force: {', '.join(built.in_force)}", soft_wrap=True)
    if built.succeeded:
        console.print("\n[bold]next[/]")
        for command, purpose in (
            ("make ui", "open the graph in Dagster"),
            ('make sql q="from monitoring.mon_segments__monthly"', "query an output"),
            ("cd dbt_project && ../.venv/bin/dbt build", "run dbt alone"),
            ("make stream", "score what streams in"),
            ("make releases", "list releases, go back"),
            ("make models", "list trained models"),
        ):
            console.print(f"  {command:<52} {purpose}")


def print_turbofan(console: Console, settings: Settings, built: Built, name: str) -> None:
    """Print what the models and the mean life make of a turbofan set's test engines, by its protocol."""
    from rich.markup import escape
    from rich.table import Table

    for failure in built.failures:
        console.print(f"\n[red]failed[/] {escape(failure)}", soft_wrap=True)
    for check in built.checks_failed:
        console.print(f"  [red]![/] {check}", soft_wrap=True)
    if not built.succeeded:
        return
    columns = {
        "RMSE, last": "remaining_hours_rmse",
        "RMSE, all": "remaining_hours_rmse_all",
        "80 % interval": "interval_coverage",
        "avg precision": "average_precision",
    }
    with connect(settings, read_only=True) as connection:
        rows = connection.execute(
            f"select algorithm, {', '.join(columns.values())}, mean_life_rmse"
            " from trained_models.predictive_maintenance"
            " where tested_hours > 0 order by as_of_at, algorithm desc"
        ).fetchall()
    shown = Table("in cycles", box=None, pad_edge=False)
    for title in columns:
        shown.add_column(title, justify="right")
    told = [row[:-1] for row in rows] + [("mean life", row[-1]) for row in rows[:1]]
    for algorithm, *values in told:
        shown.add_row(algorithm, *("-" if v is None else f"{v:.2f}" for v in values))
    console.print(
        f"\n[bold]{name}: the remaining life of the test engines, at most 125 cycles[/]\n"
        "RMSE at each engine's last cycle (the usual protocol) and over all of them; share of\n"
        "remaining lives that the interval holds; who fails within the horizon, by average precision\n"
    )
    console.print(shown)
    console.print(
        f"\nbuilt {built.assets} assets in {built.seconds:.0f} s into {settings.data_dir}; next:"
        f" WATERSHED_DATA_DIR='{settings.data_dir}' make sql"
        ' q="from monitoring.mon_predictive_maintenance__metrics"',
        soft_wrap=True,
    )


def _tables(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    return connection.execute(
        "select schema_name, table_name from duckdb_tables()"
        " where database_name = current_database()"
    ).fetchall()


def _layers(console: Console, connection: duckdb.DuckDBPyConnection) -> None:
    from rich.table import Table

    tables = [(schema, table) for schema, table in _tables(connection) if schema in LAYERS]
    if not tables:
        return
    counts = connection.execute(
        " union all ".join(
            f"select '{schema}' as layer, count(*) as n from {schema}.\"{table}\""
            for schema, table in tables
        )
    ).fetchall()
    shown = Table("layer", box=None, pad_edge=False)
    shown.add_column("tables", justify="right")
    shown.add_column("rows", justify="right")
    for layer in LAYERS:
        rows = [n for schema, n in counts if schema == layer]
        if rows:
            shown.add_row(layer, str(len(rows)), f"{sum(rows):,}")
    console.print(shown)


def _segments(console: Console, connection: duckdb.DuckDBPyConnection) -> None:
    from rich.table import Table

    if ("monitoring", "mon_segments__monthly") not in _tables(connection):
        return
    rows = connection.execute(
        """
        select cast(as_of_at - interval 1 day as date), segment_name, households_count,
            households_share, revenue_usd, revenue_share
        from monitoring.mon_segments__monthly
        where as_of_at = (select max(as_of_at) from monitoring.mon_segments__monthly)
        order by revenue_share desc
        """
    ).fetchall()
    if not rows:
        return
    shown = Table(f"segments at {rows[0][0]}", box=None, pad_edge=False)
    for column in ("households", "share", "revenue", "share of revenue"):
        shown.add_column(column, justify="right")
    for _, name, households, share, revenue, revenue_share in rows:
        shown.add_row(
            name, f"{households:,}", f"{share:.0%}", f"${revenue:,.0f}", f"{revenue_share:.0%}"
        )
    console.print()
    console.print(shown)


def _fraud(console: Console, connection: duckdb.DuckDBPyConnection) -> None:
    """Payments by what is known of them; nothing before there are any."""
    _counted(
        console,
        connection,
        "fraud detection",
        "card payments",
        {
            "payments": ("intermediate", "int_payments__merged", "true"),
            "fraud known": ("intermediate", "int_fraud_labels__versioned", _KNOWN_AS_FRAUD),
            "with features": ("features", "feat_payment__windows", "true"),
            "scored": ("predictions", "payment_scores", "true"),
            "alerts": ("predictions", "payment_scores", "is_alert"),
        },
    )


def _machines(console: Console, connection: duckdb.DuckDBPyConnection) -> None:
    """Machines by what is known of them; nothing before there are any."""
    _counted(
        console,
        connection,
        "predictive maintenance",
        "machines",
        {
            "registered": ("staging", "stg_plant_db__machines", "true"),
            "readings": ("staging", "stg_plant_stream__readings", "true"),
            "failures": ("staging", "stg_plant_db__failures", "true"),
            "hours with features": ("features", "feat_machine__history", "true"),
            "hours scored": ("predictions", "machine_health", "true"),
            "open warnings": ("predictions", "machine_warnings", "state <> 'closed'"),
        },
    )


def _counted(
    console: Console,
    connection: duckdb.DuckDBPyConnection,
    use_case: str,
    what: str,
    counted: dict[str, tuple[str, str, str]],
) -> None:
    """One row of counts, each of a table's rows under a condition; nothing when the first is 0."""
    from rich.table import Table

    tables = set(_tables(connection))
    counts = {
        title: int(
            connection.execute(
                f"select count(*) from {schema}.{table} where {condition}"
            ).fetchall()[0][0]
        )
        for title, (schema, table, condition) in counted.items()
        if (schema, table) in tables
    }
    if not counts.get(next(iter(counted))):
        return
    shown = Table(use_case, box=None, pad_edge=False)
    for title in counts:
        shown.add_column(title, justify="right")
    shown.add_row(what, *(f"{count:,}" for count in counts.values()))
    console.print()
    console.print(shown)
