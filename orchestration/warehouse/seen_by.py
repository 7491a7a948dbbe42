"""Which trained models have learned from a person's rows, and from how many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import literal, quoted
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    import duckdb

_WINDOW = {
    "trained_from": "as_of_at >= ?",
    "trained_until": "as_of_at < ?",
    "as_of_at": "label_known_at <= ?",
}
"""A trained model's column to what the rows that it learned from fulfil; of a moment alone, `_MOMENT`."""
_MOMENT = "as_of_at = ?"


def models_trained_on(
    connection: duckdb.DuckDBPyConnection, column: str, value: str, row_keys: Iterable[str]
) -> list[tuple[str, str, int | None]]:
    """The models of the warehouse and of every release that learned from rows of a person.

    Args:
        connection: to the warehouse, from which the person is not gone yet.
        column: the person's identifier.
        value: of it.
        row_keys: values of the person's row keys are in the temporary table `row_keys`; these are their columns.

    Returns:
        Use case, version and the number of rows; None where the snapshot it learned from is expired.
    """
    found = []
    for (table,) in connection.execute(
        "select table_name from duckdb_columns() where database_name = current_database()"
        " and schema_name = 'trained_models' and column_name = 'training_snapshot_id' order by 1"
    ).fetchall():
        there = _columns(connection, "training_sets", f"train_{table}")
        if column in there:
            whose = f"{quoted(column)} = {literal(value)}"
        else:
            keyed = (
                f"cast({quoted(key)} as varchar) in (from row_keys)"
                for key in row_keys
                if key in there
            )
            whose = " or ".join(keyed)
        if not whose:
            continue
        for version, snapshot, *moments in sorted(_models(connection, table), key=str):
            window = dict(zip(_WINDOW, moments, strict=True))
            rows = _rows(connection, f"train_{table}", snapshot, whose, there, window)
            if rows != 0:
                found.append((table, version, rows))
    return found


def _models(connection: duckdb.DuckDBPyConnection, table: str) -> set[tuple[Any, ...]]:
    """Version, snapshot and the columns of `_WINDOW` of each model that stands, or stood in a release."""
    import duckdb

    name, found = f"trained_models.{quoted(table)}", set()
    snapshots = (
        connection.execute("select distinct snapshot_id from releases.history").fetchall()
        if table_exists(connection, "releases", "history")
        else []
    )
    for at in ("", *(f" at (version => {snapshot})" for (snapshot,) in snapshots)):
        try:
            there = {row[0] for row in connection.execute(f"describe from {name}{at}").fetchall()}
        except duckdb.CatalogException:  # that release is from before the table
            continue
        moments = ", ".join(one if one in there else "null" for one in _WINDOW)
        found |= {
            *connection.execute(
                f"select distinct model_version, training_snapshot_id, {moments} from {name}{at}"
            ).fetchall()
        }
    return found


def _rows(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    snapshot: int,
    whose: str,
    there: set[str],
    window: dict[str, Any],
) -> int | None:
    """How many rows of the person the model learned from."""
    import duckdb

    told = {_WINDOW[name]: moment for name, moment in window.items() if moment is not None}
    if window["trained_until"] is None and window["as_of_at"] is not None:
        told = {_MOMENT: window["as_of_at"]}
    conditions = {text: moment for text, moment in told.items() if text.split()[0] in there}
    try:
        ((rows,),) = connection.execute(
            f"select count(*) from training_sets.{quoted(source)} at (version => {snapshot})"
            f" where {' and '.join([f'({whose})', *conditions])}",
            [*conditions.values()],
        ).fetchall()
    except duckdb.Error:  # that snapshot is expired: nobody can say
        return None
    return int(rows)


def _columns(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> set[str]:
    return {
        name
        for (name,) in connection.execute(
            "select column_name from duckdb_columns() where database_name = current_database()"
            " and schema_name = ? and table_name = ?",
            [schema, table],
        ).fetchall()
    }
