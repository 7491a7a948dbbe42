"""The dbt project as assets: what stands before the trained models, and what watches after them.

An asset's data version is a hash of its rows in any order, so it stays if they do. Where `build` says which
models are stale, dbt leaves alone those that nothing changed for; they are not told of as materialised.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.compat import DBT_PYTHON_VERSION
from dagster_dbt.core.dbt_cli_invocation import DbtCliInvocation

from orchestration.build import DBT, STALE, prepare_manifest
from orchestration.defs.vocabulary import (
    column_lineage,
    described_schema,
    lineage_from,
    picture,
    rows_and_version,
)
from orchestration.lineage.query import sources_of
from orchestration.settings import PROJECT_ROOT, load_settings
from orchestration.warehouse.connect import connect, transaction
from orchestration.warehouse.frames import current_snapshot, read_frame

if TYPE_CHECKING:
    import duckdb

DBT_PROJECT = DbtProject(project_dir=PROJECT_ROOT / "dbt_project")
prepare_manifest()

warnings.filterwarnings(
    "ignore", category=dg.BetaWarning
)  # data versions of outputs; Dagster is pinned

_MONITORING = "path:models/monitoring"
_STALE_MODELS = "WATERSHED_STALE_MODELS"
"""What macros/difference.sql reads; dbt's process starts with the environment as it is then."""


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
    return Dbt(project_dir=DBT_PROJECT, dbt_executable=DBT)


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
    os.environ[_STALE_MODELS] = context.run.tags.get(STALE, "")
    try:
        invocation = dbt.cli(BUILD, context=context)
    finally:
        del os.environ[_STALE_MODELS]
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
    """Add data version, snapshot, row count, columns and column lineage to what was built.

    `stream().fetch_row_counts().fetch_column_metadata()` would add the like, but asks dbt's adapter once
    per model from threads, while another thread spins: seconds per build; and it does not see windows.
    """
    nodes = invocation.manifest["nodes"]
    results = invocation.target_path / "run_results.json"
    unaffected = {
        result["unique_id"]
        for result in (json.loads(results.read_bytes())["results"] if results.exists() else [])
        if result["adapter_response"].get("_message") == "UNAFFECTED"
    }
    with connect(load_settings(), read_only=True) as connection, transaction(connection):
        snapshot = current_snapshot(connection)
        columns: dict[str, dict[str, str]] = {}
        for schema, table, column, kind in connection.execute(
            "select schema_name, table_name, column_name, data_type from duckdb_columns()"
            " where database_name = current_database()"
        ).fetchall():
            columns.setdefault(f"{schema}.{table}", {})[column] = kind
        for event in events:
            node = nodes[event.metadata["unique_id"].value] if isinstance(event, dg.Output) else {}
            if node and node["unique_id"] in unaffected:
                continue
            relation = f"{node['schema']}.{node['alias']}" if node else ""
            if relation not in columns:
                yield event
                continue
            rows, version = rows_and_version(connection, relation)
            described = {name: said.get("description") for name, said in node["columns"].items()}
            compiled = invocation.target_path / "compiled" / node["package_name"]
            lineage = {}
            if node["resource_type"] == "model":
                sql = (compiled / node["original_file_path"]).read_text()
                values = sources_of(sql, columns).values
                lineage = column_lineage(
                    lineage_from(
                        {
                            column: [
                                (table.replace(".", "/"), source) for table, source in sorted(of)
                            ]
                            for column, of in values.items()
                        }
                    )
                )
            yield dg.Output(
                value=event.value,
                output_name=event.output_name,
                data_version=version,
                metadata={
                    **event.metadata,
                    "dagster/row_count": rows,
                    "snapshot": snapshot,
                    "dagster/column_schema": described_schema(
                        relation, columns[relation], described
                    ),
                    **(
                        _drift_picture(connection, relation) if relation.endswith("__drift") else {}
                    ),
                    **lineage,
                },
            )


def _drift_picture(
    connection: "duckdb.DuckDBPyConnection", relation: str
) -> dict[str, dg.MarkdownMetadataValue]:
    """The newest week's drift tests, if there were any."""
    from orchestration.learning.drift_plots import draw_drift

    png = draw_drift(read_frame(connection, f"from {relation}"))
    return {"plot": picture(png, "how far each feature has moved")} if png else {}


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
