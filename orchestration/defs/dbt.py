"""The dbt project as assets: what stands before the trained models, and what watches after them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.asset_utils import default_metadata_from_dbt_resource_props
from dagster_dbt.core.dbt_cli_event import EventHistoryMetadata, _build_column_lineage_metadata
from dagster_dbt.core.dbt_cli_invocation import DbtCliInvocation

from orchestration.build import prepare_manifest
from orchestration.settings import PROJECT_ROOT, load_settings
from orchestration.warehouse.connect import connect

DBT_PROJECT = DbtProject(project_dir=PROJECT_ROOT / "dbt_project")
prepare_manifest()

_MONITORING = "path:models/monitoring"


BUILD = ["build", "--exclude-resource-type", "unit_test", "--indirect-selection", "buildable"]
"""Without unit tests, which test the code, not the data; a test of several models runs with the last."""


def dbt_resource() -> DbtCliResource:
    """dbt, as `cd dbt_project && dbt ...` would run it."""
    return DbtCliResource(
        project_dir=DBT_PROJECT, dbt_executable=str(Path(sys.executable).parent / "dbt")
    )


def _build(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Run dbt, telling of each model as it is built."""
    invocation = dbt.cli(BUILD, context=context)
    events = []
    try:
        for event in invocation.stream():
            events.append(event)
            if isinstance(event, dg.Output):
                name = str(event.metadata["unique_id"].value).rpartition(".")[2]
                context.log.info(f"{name}  {event.metadata['Execution Duration'].value:.1f} s")
    finally:
        yield from _with_table_metadata(invocation, events)


def _with_table_metadata(invocation: DbtCliInvocation, events: list[Any]) -> Iterator[Any]:
    """Add row count, columns and column lineage to what was built.

    This is what `stream().fetch_row_counts().fetch_column_metadata()` adds, with its own parts. That
    asks dbt's adapter once per model from threads, while another thread spins: seconds per build.
    """
    connection = connect(load_settings(), read_only=True)
    columns: dict[str, dict[str, Any]] = {}
    for schema, table, column, kind in connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns()"
        " where database_name = current_database()"
    ).fetchall():
        relation = f'"lake"."{schema}"."{table}"'
        columns.setdefault(relation, {})[column] = {"data_type": kind}
    nodes = {**invocation.manifest["nodes"], **invocation.manifest["sources"]}
    for event in events:
        node = nodes[event.metadata["unique_id"].value] if isinstance(event, dg.Output) else {}
        relation = node.get("relation_name", "")
        if relation not in columns:
            yield event
            continue
        ((rows,),) = connection.execute(f"select count(*) from {relation}").fetchall()
        parents = [
            nodes[parent]["relation_name"]
            for parent in invocation.manifest["parent_map"][node["unique_id"]]
            if parent in nodes
        ]
        yield event.with_metadata(
            {
                **event.metadata,
                "dagster/row_count": rows,
                **default_metadata_from_dbt_resource_props({"columns": columns[relation]}),
                **_build_column_lineage_metadata(
                    event_history_metadata=EventHistoryMetadata(
                        columns=columns[relation],
                        parents={name: columns[name] for name in parents if name in columns},
                    ),
                    dbt_resource_props=node,
                    manifest=invocation.manifest,
                    dagster_dbt_translator=invocation.dagster_dbt_translator,
                    target_path=invocation.target_path,
                    project=invocation.project,
                ),
            }
        )
    connection.close()


@dbt_assets(manifest=DBT_PROJECT.manifest_path, project=DBT_PROJECT, exclude=_MONITORING)
def dbt_to_training_sets(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Seeds, staging, intermediate, features and training sets."""
    yield from _build(context, dbt)


@dbt_assets(manifest=DBT_PROJECT.manifest_path, project=DBT_PROJECT, select=_MONITORING)
def dbt_monitoring(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Models over what was predicted: segments, migration, metrics against targets."""
    yield from _build(context, dbt)
