"""What Dagster knows of the graph now: which assets are stale, which checks failed, whether runs are under way."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver,
    StaleCauseCategory,
    StaleStatus,
)
from dagster._core.loader import LoadingContext
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.event_log.base import AssetRecord
from dagster._core.storage.tags import GRPC_INFO_TAG

from orchestration.build import INGESTS


def not_up_to_date(instance: Any, graph: Any) -> list[Any]:
    """The assets that are stale, and all downstream, which may become so."""
    stale = dg.AssetSelection.keys(*stale_assets(instance, graph)).downstream().resolve(graph)
    return sorted(stale & graph.materializable_asset_keys)


def stale_assets(instance: Any, graph: Any, *, by_landing: bool = True) -> set[Any]:
    """The assets the UI shows as missing or unsynced, or with a failed error-level check.

    Args:
        instance: Dagster's.
        graph: the asset graph.
        by_landing: also those that are unsynced only because rows have landed.
    """

    class Context(LoadingContext):
        def __init__(self) -> None:
            self._loaders: dict[Any, Any] = {}

        @property
        def instance(self) -> dg.DagsterInstance:
            return instance  # type: ignore[no-any-return]

        @property
        def loaders(self) -> dict[Any, Any]:
            return self._loaders

    # The same resolver that answers the UI, so that both always agree; Dagster is pinned.
    context = Context()
    resolver = CachingStaleStatusResolver(instance, graph, context)
    AssetRecord.prepare(context, graph.get_all_asset_keys())  # one query instead of one per asset

    def is_stale(key: dg.AssetKey, partition: str | None) -> bool:
        status = resolver.get_status(key, partition)
        if by_landing or status is not StaleStatus.STALE:
            return status is not StaleStatus.FRESH
        return any(
            cause.category is not StaleCauseCategory.DATA
            or cause.dependency is None
            or cause.dependency.asset_key.path[0] != "raw"
            for cause in resolver.get_stale_causes(key, partition)
        )

    failed = {
        check.asset_key
        for check, (passed, is_error) in latest_checks(instance, graph).items()
        if not passed and is_error
    }
    return failed | {
        key
        for key in graph.materializable_asset_keys
        if any(is_stale(key, partition) for partition in (*partition_keys(graph, key),) or (None,))
    }


def partition_keys(graph: Any, key: Any) -> list[str]:
    """The asset's partitions, in order; none if it is not partitioned."""
    partitions = graph.get(key).partitions_def
    return list(partitions.get_partition_keys()) if partitions is not None else []


def latest_checks(instance: Any, graph: Any) -> dict[Any, tuple[bool, bool]]:
    """For every check that was ever evaluated: whether it last passed, and whether it is error-level."""
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        list(graph.asset_check_keys)
    )
    evaluations = {
        check: record.event.dagster_event.asset_check_evaluation_data
        for check, record in records.items()
        # a check whose run broke off before it is planned, not evaluated
        if record.event is not None
        and record.event.dagster_event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    }
    return {
        check: (evaluation.passed, evaluation.severity is dg.AssetCheckSeverity.ERROR)
        for check, evaluation in evaluations.items()
    }


def is_running(instance: Any) -> bool:
    """Whether a run of the UI, a schedule or a sensor may be between a table and telling Dagster of it."""
    running = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES))
    return any(
        GRPC_INFO_TAG in run.tags  # builds hold the lock instead
        and not run.job_name.startswith(INGESTS)  # which only lands, and may always be running
        for run in running
    )
