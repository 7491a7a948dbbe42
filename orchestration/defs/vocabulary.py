"""Dagster words that several assets share: code versions, failures a person can read, what is told of a table."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.errors import MendableError, PassingError
from orchestration.layers import LAYERS
from orchestration.settings import PROJECT_ROOT, Settings, load_settings
from orchestration.warehouse.frames import current_snapshot
from orchestration.warehouse.holding import holding_rows

if TYPE_CHECKING:
    import duckdb
    import pandera.polars as pa
    import polars as pl

_PACKAGE = Path(__file__).resolve().parent.parent
LINEAGE = "dagster/column_lineage"


def code_version(*parts: str) -> str:
    """A hash of the source of these files or folders of the package: it changes when the code does."""
    digest = hashlib.sha256()
    for part in parts:
        path = _PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def raise_as_failure() -> Iterator[None]:
    """What a step of Python does within: a `MendableError` in it becomes a Dagster failure.

    Only what passes is worth a retry. Nobody is forgotten meanwhile, since a step holds rows that it writes.
    """
    try:
        with holding_rows(load_settings(), "a step of the graph"):
            yield
    except MendableError as error:
        raise dg.Failure(
            description=str(error), allow_retries=isinstance(error, PassingError)
        ) from None


def broken_promises(contract: Any, frame: pl.DataFrame) -> list[str]:
    """What of a pandera contract the frame breaks, `column: check`; empty when it holds."""
    from pandera.errors import SchemaErrors

    try:
        contract.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.select("column", "check").unique().sort("column", "check")
        return [f"{column}: {check}" for column, check in cases.iter_rows()]
    return []


@cache
def dbt_manifest() -> Any:
    """What dbt knows of the project, as it was last parsed."""
    return json.loads((PROJECT_ROOT / "dbt_project" / "target" / "manifest.json").read_bytes())


def documented_columns(table: str) -> dict[str, str]:
    """Column to description of a table that Python fills, as the dbt project documents its source."""
    source = dbt_manifest()["sources"].get(f"source.watershed.{table}", {"columns": {}})
    return {name: column["description"] for name, column in source["columns"].items()}


def described_schema(
    table: str, types: Mapping[str, str], descriptions: Mapping[str, str]
) -> dg.TableSchema:
    """The columns of a table `schema.name` as the UI shows them, with what they tell of a person."""
    tags = column_tags(table)
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, descriptions.get(name), tags=tags.get(name))
            for name, kind in types.items()
        ]
    )


def column_tags(table: str) -> dict[str, dict[str, str]]:
    """Column to its tags in the UI, `privacy` among them, of a table `schema.name`."""
    from orchestration.warehouse.privacy import tags

    return {column: {"privacy": tag} for column, tag in tags().get(table, {}).items()}


def table_schema(contract: pa.DataFrameSchema) -> dg.TableSchema:
    """The columns of a pandera contract, as Dagster shows them: SQL types, descriptions, constraints."""
    from orchestration.landing.checking import sql_types

    layer, _, table = str(contract.name).partition(".")
    table_name = contract.name if layer in LAYERS else f"raw.{layer}__{table}"
    descriptions = documented_columns(table_name)
    types = sql_types(contract)
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name,
                type=types[name],
                description=column.description or descriptions.get(name),
                tags=column_tags(table_name).get(name),
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable,
                    unique=column.unique,
                    other=[str(check.error or check.name) for check in column.checks],
                ),
            )
            for name, column in contract.columns.items()
        ]
    )


def rows_and_version(
    connection: duckdb.DuckDBPyConnection, table: str
) -> tuple[int, dg.DataVersion]:
    """How many rows `schema.table` has, and a version that is the same for the same rows in any order.

    It is a sum of DuckDB's own hashes, 0.1 s for a million rows; another version of DuckDB may hash otherwise,
    and then everything is built once more.
    """
    columns = connection.execute(
        f"select column_name, column_type from (describe {table})"
    ).fetchall()
    ((rows, total),) = connection.execute(
        f"select count(*), sum(hash(t)) from {table} as t"
    ).fetchall()
    shape = hashlib.sha256(repr(columns).encode()).hexdigest()[:8]
    return rows, dg.DataVersion(f"{shape}-{rows}-{total or 0:x}")


def table_metadata(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    sources: Mapping[str, Sequence[tuple[str, str]]],
    others: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Row count, snapshot, columns and column lineage of a table that Python fills.

    Args:
        connection: to the warehouse.
        table: `schema.table`, documented as a source of the dbt project.
        sources: column to the (`layer/table`, column) it comes from.
        others: what every other column comes from.
    """
    ((rows,),) = connection.execute(f"select count(*) from {table}").fetchall()
    columns = {name: kind for name, kind, *_ in connection.execute(f"describe {table}").fetchall()}
    return {
        "dagster/row_count": rows,
        "snapshot": current_snapshot(connection),
        "dagster/column_schema": described_schema(table, columns, documented_columns(table)),
        **column_lineage(lineage_from({name: sources.get(name, others) for name in columns})),
    }


def lineage_from(
    columns: Mapping[str, Sequence[tuple[str, str]]],
) -> dg.TableColumnLineage:
    """Column lineage of a Python asset: column to its (`layer/table`, column) sources."""
    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(asset_key=dg.AssetKey(asset.split("/")), column_name=source)
                for asset, source in sources
            ]
            for column, sources in columns.items()
        }
    )


def column_lineage(lineage: dg.TableColumnLineage) -> dict[str, Any]:
    """The lineage as Dagster keeps it, and as a table to read: its open-source UI does not draw it."""
    rows = [
        f"| {column} | {source} |"
        for column, deps in sorted(lineage.deps_by_column.items())
        for source in [_link(dep) for dep in deps] or ["no column"]
    ]
    return {
        LINEAGE: lineage,
        "columns_come_from": dg.MetadataValue.md(
            "\n".join(["| column | comes from |", "|---|---|", *rows])
        ),
    }


def _link(dep: dg.TableColumnDep) -> str:
    table = dep.asset_key.path
    return f"[{'.'.join(table)}](/assets/{'/'.join(table)}).{dep.column_name}"


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG that the UI shows in place."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{b64encode(png).decode()})")


def segmented_months(settings: Settings) -> dg.MonthlyPartitionsDefinition:
    """The months that get customer segments, as the settings say."""
    last = settings.segmentation_last_month
    return dg.MonthlyPartitionsDefinition(
        start_date=settings.segmentation_first_month,
        end_date=None if last == "open" else month_end(last),
        fmt="%Y-%m",
    )


def month_end(partition_key: str) -> datetime:
    """The `as_of_at` of a month's partition: the first instant after the month, naive UTC."""
    start = datetime.strptime(partition_key, "%Y-%m")
    return datetime(start.year + start.month // 12, start.month % 12 + 1, 1)
