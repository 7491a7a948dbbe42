"""What Dagster's history says is broken: steps that failed and were not made good since."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import dagster as dg


def failed_steps(instance: Any, graph: Any) -> dict[str, str]:
    """The steps that failed last time, each with what mends it as its error says (empty if it does not).

    A failure counts until every asset it was to build has been built by a later run, or is in one.

    Args:
        instance: Dagster's.
        graph: the asset graph; what is no longer in it does not count.
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
        for event in _events(instance, run_id, dg.DagsterEventType.STEP_FAILURE):
            if event.step_key in open_steps:
                user = event.step_failure_data.user_failure_data
                text = (user and user.description) or ""
                found[event.step_key] = text.partition("\n  to mend:")[2].strip()
    return found


def _events(instance: Any, run_id: str, kind: Any) -> list[Any]:
    records = instance.get_records_for_run(run_id, of_type=kind).records
    return [record.event_log_entry.dagster_event for record in records]
