"""The dbt project as assets: what stands before the trained models, and what watches after them."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.asset_utils import default_metadata_from_dbt_resource_props
from dagster_dbt.compat import DBT_PYTHON_VERSION
from dagster_dbt.core.dbt_cli_event import EventHistoryMetadata, _build_column_lineage_metadata
from dagster_dbt.core.dbt_cli_invocation import DbtCliInvocation

from orchestration.build import prepare_manifest
from orchestration.defs.vocabulary import LINEAGE, column_lineage
from orchestration.settings import PROJECT_ROOT, load_settings
from orchestration.warehouse.connect import connect

DBT_PROJECT = DbtProject(project_dir=PROJECT_ROOT / "dbt_project")
prepare_manifest()

_MONITORING = "path:models/monitoring"


BUILD = ["build", "--exclude-resource-type", "unit_test", "--indirect-selection", "buildable"]
"""Without unit tests, which test the code, not the data; a test of several models runs with the last."""


class Dbt(DbtCliResource):
    """dbt as a process of its own, and nothing of dbt in Dagster's.

    Before each command dagster-dbt asks `dbt --version`, which asks the network for a newer one, and
    builds an adapter for the metadata that `_with_table_metadata` gets otherwise: 5 CPU-seconds.
    """

    @property
    def _cli_version(self) -> Any:
        return DBT_PYTHON_VERSION

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> None:
        return None


def dbt_resource() -> Dbt:
    """dbt, as `cd dbt_project && dbt ...` would run it."""
    return Dbt(project_dir=DBT_PROJECT, dbt_executable=str(Path(sys.executable).parent / "dbt"))


class _Checks(DagsterDbtTranslator):
    """Assets as dagster-dbt has them; a check says what its dbt test claims, and how to see what breaks it."""

    def get_asset_check_spec(
        self,
        asset_spec: dg.AssetSpec,
        manifest: Mapping[str, Any],
        unique_id: str,
        project: DbtProject | None,
    ) -> dg.AssetCheckSpec | None:
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        if spec is None:
            return None
        test = manifest["nodes"][unique_id]
        generic = test.get("test_metadata")
        if generic is not None:
            arguments = {k: v for k, v in generic["kwargs"].items() if k not in ("model", "config")}
            claim = f"`{generic['name']}`" + "".join(
                f"\n- {name}: `{value}`" for name, value in arguments.items()
            )
        else:
            claim = f"```sql\n{test['raw_code']}\n```"
        look = f"cd dbt_project && ../.venv/bin/dbt show --select {test['name']}"
        parts = [test.get("description"), claim, f"Rows that break it: `{look}`"]
        described: dg.AssetCheckSpec = spec._replace(description="\n\n".join(filter(None, parts)))
        return described


def _build(context: dg.AssetExecutionContext, dbt: Dbt) -> Iterator[Any]:
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
    shutil.rmtree(invocation.target_path)  # a failed command's stays, with its dbt.log


def _with_table_metadata(invocation: DbtCliInvocation, events: list[Any]) -> Iterator[Any]:
    """Add row count, columns and column lineage to what was built.

    This is what `stream().fetch_row_counts().fetch_column_metadata()` adds, with its own parts. That
    asks dbt's adapter once per model from threads, while another thread spins: seconds per build.
    """
    nodes = {**invocation.manifest["nodes"], **invocation.manifest["sources"]}
    with connect(load_settings(), read_only=True) as connection:
        columns: dict[str, dict[str, Any]] = {}
        for schema, table, column, kind in connection.execute(
            "select schema_name, table_name, column_name, data_type from duckdb_columns()"
            " where database_name = current_database()"
        ).fetchall():
            relation = f'"lake"."{schema}"."{table}"'
            columns.setdefault(relation, {})[column] = {"data_type": kind}
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
            described = {
                name: {**column, "description": node["columns"].get(name, {}).get("description")}
                for name, column in columns[relation].items()
            }
            lineage = _build_column_lineage_metadata(
                event_history_metadata=EventHistoryMetadata(
                    columns=columns[relation],
                    parents={name: columns[name] for name in parents if name in columns},
                ),
                dbt_resource_props=node,
                manifest=invocation.manifest,
                dagster_dbt_translator=invocation.dagster_dbt_translator,
                target_path=invocation.target_path,
                project=invocation.project,
            )
            yield event.with_metadata(
                {
                    **event.metadata,
                    "dagster/row_count": rows,
                    **default_metadata_from_dbt_resource_props({"columns": described}),
                    **(column_lineage(lineage[LINEAGE]) if lineage else {}),
                }
            )


@dbt_assets(
    manifest=DBT_PROJECT.manifest_path,
    project=DBT_PROJECT,
    exclude=_MONITORING,
    dagster_dbt_translator=_Checks(),
)
def dbt_to_training_sets(context: dg.AssetExecutionContext, dbt: Dbt) -> Iterator[Any]:
    """Seeds, staging, intermediate, features and training sets."""
    yield from _build(context, dbt)


@dbt_assets(
    manifest=DBT_PROJECT.manifest_path,
    project=DBT_PROJECT,
    select=_MONITORING,
    dagster_dbt_translator=_Checks(),
)
def dbt_monitoring(context: dg.AssetExecutionContext, dbt: Dbt) -> Iterator[Any]:
    """Models over what was predicted: segments, migration, metrics against targets."""
    yield from _build(context, dbt)
