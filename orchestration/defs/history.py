"""Dagster's history: which steps failed and were not made good since; what was decided outside a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.defs.vocabulary import rows_and_version

if TYPE_CHECKING:
    import duckdb


def failed_steps(instance: Any, graph: Any, failed_checks: Collection[str] = ()) -> dict[str, str]:
    """The steps that failed last time, each with what mends it as its error says (empty if it does not).

    A failure counts until every asset it was to build has been built by a later run, or is in one. A step
    that only one of its checks has failed, and that still fails, is left to that check.

    Args:
        instance: Dagster's.
        graph: the asset graph; what is no longer in it does not count.
        failed_checks: error-level checks that fail now, `asset: check`.
    """
    unbuilt = defaultdict(set)
    for record in instance.get_asset_records(list(graph.materializable_asset_keys)):
        entry = record.asset_entry
        built = entry.last_materialization
        if entry.last_run_id and (built is None or built.run_id != entry.last_run_id):
            unbuilt[entry.last_run_id].add(entry.asset_key)
    found = {}
    for run_id, assets in unbuilt.items():
        run = instance.get_run_by_id(run_id)
        if run is None or run.status is not dg.DagsterRunStatus.FAILURE:
            continue
        open_steps = {
            event.step_key
            for event in _events(
                instance, run_id, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
            )
            if event.asset_key in assets
        }
        checked = {
            event.step_key
            for event in _events(instance, run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            if (one := event.asset_check_evaluation_data)
            and f"{one.asset_key.to_user_string()}: {one.check_name}" in failed_checks
        }
        for event in _events(instance, run_id, dg.DagsterEventType.STEP_FAILURE):
            if event.step_key in open_steps:
                user = event.step_failure_data.user_failure_data
                text = (user and user.description) or ""
                mend = text.partition("\n  to mend:")[2].strip()
                if mend or event.step_key not in checked:
                    found[event.step_key] = mend
    return found


def tell_of_decisions(
    instance: dg.DagsterInstance, connection: duckdb.DuckDBPyConnection, use_case: str
) -> None:
    """Tell Dagster that decisions were written outside a run, so that what depends on them becomes stale.

    Args:
        instance: Dagster's.
        connection: to the warehouse; reading is enough.
        use_case: whose.
    """
    from dagster._core.definitions.data_version import (
        DATA_VERSION_IS_USER_PROVIDED_TAG,
        DATA_VERSION_TAG,
    )

    key = dg.AssetKey(["trained_models", f"{use_case}__decisions"])
    event = instance.get_latest_materialization_event(key)
    built = event.asset_materialization if event else None
    if built is None:
        return  # nothing was built from it either
    rows, version = rows_and_version(connection, ".".join(key.path))
    # The code and the inputs that it was last built with still hold: only its rows are others.
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            metadata={**built.metadata, "dagster/row_count": rows},
            tags={
                **(built.tags or {}),
                DATA_VERSION_TAG: version.value,
                DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
            },
        )
    )


def _events(instance: Any, run_id: str, kind: Any) -> list[Any]:
    records = instance.get_records_for_run(run_id, of_type=kind).records
    return [record.event_log_entry.dagster_event for record in records]
