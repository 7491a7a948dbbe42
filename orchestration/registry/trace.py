"""From a prediction back: its model, what that learned from, and the rows in raw that both came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import quoted
from orchestration.errors import MendableError
from orchestration.registry import store
from orchestration.settings import Settings
from orchestration.warehouse.frames import read_frame

if TYPE_CHECKING:
    import duckdb

MOST_ROWS = 5
"""Source rows that are shown of a table; how many there are is told."""


def trace(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    table: str,
    key: str,
    raw_tables: Iterable[str],
) -> Iterator[str]:
    """Lines that lead from a prediction to its sources. They hold keys and places, no other values.

    Args:
        connection: to the warehouse; reading is enough.
        settings: which registry.
        table: a table with `model_version`, as `schema.table`.
        key: `column=value`, several with commas between.
        raw_tables: the tables in `raw` that it comes from.

    Raises:
        MendableError: no such table, column or row, or its model is not registered.
    """
    columns = _columns(connection, table)
    wanted = dict(part.partition("=")[::2] for part in key.split(","))
    if "model_version" not in columns or not wanted.keys() <= columns.keys():
        raise MendableError(
            f"trace {table} {key}",
            expected=f"a table with model_version, and its columns; it has {', '.join(columns)}",
            arrived=", ".join(wanted),
            mend="watershed trace customer_segments household_id=5,as_of_at=2017-05-01",
        )
    rows = _matching(connection, table, columns, wanted, limit=MOST_ROWS)
    if not rows:
        raise MendableError(
            f"trace {table} {key}", expected="a prediction", arrived="no row of that key",
            mend=f'make sql q="from {table} limit 5"',
        )  # fmt: skip
    for version in dict.fromkeys(str(row["model_version"]) for row in rows):
        yield f"prediction      {table} {key}"
        if version.startswith("baseline_rule"):
            yield f"model           {version}: no model was in force, the rule decided"
            continue
        yield from _of_model(settings, version)
    for raw in sorted(one for one in raw_tables if one.startswith("raw.")):
        shared = {name: wanted[name] for name in wanted if name in _columns(connection, raw)}
        if not shared:
            continue
        names = _columns(connection, raw)
        found = _matching(connection, raw, names, shared, limit=MOST_ROWS)
        where = ", ".join(f"{name}={value}" for name, value in shared.items())
        yield f"source rows     {raw} where {where}: {len(found)} shown"
        for row in found:
            yield f"                batch {row['_batch_id']} at {row['_source_position']}"


def _of_model(settings: Settings, version: str) -> Iterator[str]:
    use_case, one = store.find(settings, version)
    client = store.open_store(settings)
    with store.telling(settings):
        run = client.get_run(one.run_id)
    told = run.data.tags
    yield f"model           {version} ({use_case}, version {one.number} of {one.name}, run {one.run_id})"
    yield f"code            {told.get('code_version')}, python {told.get('python')}, {told.get('packages')}"
    for dataset in run.inputs.dataset_inputs if run.inputs else ():
        source = json.loads(dataset.dataset.source)
        yield f"training set    {dataset.dataset.name}, content {source['content_hash']}"
        learned = run.data.params
        window = " to ".join(
            learned[key] for key in ("trained_from", "trained_until") if key in learned
        )
        rows = learned.get("training_content_hash")
        yield f"learned from    {window or 'as of ' + learned['as_of_at']}" + (
            f", rows with hash {rows}" if rows else ""
        )
        release = told.get("release")
        yield f"release         {release}, snapshot {told.get('snapshot_id')}; again: make rebuild release={release}"


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    schema, _, name = table.partition(".")
    rows = connection.execute(
        "select column_name, data_type from duckdb_columns() where database_name = current_database()"
        " and schema_name = ? and table_name = ? order by column_index",
        [schema, name],
    ).fetchall()
    if not rows:
        raise MendableError(
            f"table {table}", expected="a table of the warehouse", arrived="none of that name",
            mend="watershed trace payment_scores transaction_id=17",
        )  # fmt: skip
    return dict(rows)


def _matching(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: dict[str, str],
    wanted: dict[str, str],
    limit: int,
) -> list[dict[str, Any]]:
    schema, _, name = table.partition(".")
    kept = [one for one in ("model_version", "_batch_id", "_source_position") if one in columns]
    where = " and ".join(f"{quoted(one)} = try_cast(? as {columns[one]})" for one in wanted)
    found = read_frame(
        connection,
        f"select {', '.join(map(quoted, kept))} from {quoted(schema)}.{quoted(name)}"
        f" where {where} limit {limit}",
        list(wanted.values()),
    )
    return found.to_dicts()
