"""What runs by itself: releases; with WATERSHED_AUTOMATION also segments, maintenance and fraud models, on schedule.

The ingestion schedule of a source stands in its own `defs/raw/<system>/defs.yaml`.
"""

from collections.abc import Iterator

import dagster as dg

from orchestration.settings import load_settings

SWITCHED = (
    dg.DefaultScheduleStatus.RUNNING
    if load_settings().automation
    else dg.DefaultScheduleStatus.STOPPED
)


def _with_what_depends_on_it(use_case: str) -> dg.AssetSelection:
    """A use case, and what of the other groups is made of it: built in one run, so that it can be released.

    What is made of its seeds only is left out: people edit those, and build.
    """
    own = dg.AssetSelection.groups(use_case) - dg.AssetSelection.key_prefixes("sources")
    return own | (own - dg.AssetSelection.key_prefixes("seeds")).downstream()


segment_customers = dg.define_asset_job(
    "segment_customers",
    selection=_with_what_depends_on_it("customer_segmentation"),
    description="The whole use case: land, transform, train, score, watch.",
)


@dg.schedule(
    job=segment_customers,
    cron_schedule="0 7 2 * *",
    default_status=SWITCHED,
    description="On the 2nd of the month, 07:00 UTC: the month that has just ended.",
)
def monthly_segmentation() -> Iterator[dg.RunRequest]:
    """One run, up to the last month that is a partition."""
    months = _months()
    if months:
        yield dg.RunRequest(run_key=months[-1], tags=_range(months))


def _months() -> list[str]:
    from orchestration.defs.vocabulary import segmented_months

    return list(segmented_months(load_settings()).get_partition_keys())


def _range(months: list[str]) -> dict[str, str]:
    """Run tags of all months at once, as in a build: what a new month brings makes the others stale too."""
    from dagster._core.storage.tags import (
        ASSET_PARTITION_RANGE_END_TAG,
        ASSET_PARTITION_RANGE_START_TAG,
    )

    return {ASSET_PARTITION_RANGE_START_TAG: months[0], ASSET_PARTITION_RANGE_END_TAG: months[-1]}


retrain_fraud_detection = dg.define_asset_job(
    "retrain_fraud_detection",
    selection=_with_what_depends_on_it("fraud_detection"),
    description="The whole use case: land, transform, train the weeks that are new, watch.",
)

weekly_fraud_detection = dg.ScheduleDefinition(
    name="weekly_fraud_detection",
    job=retrain_fraud_detection,
    cron_schedule="0 1 * * 1",
    default_status=SWITCHED,
    description="Mondays, 01:00 UTC: the week whose labels have just become known.",
)

retrain_predictive_maintenance = dg.define_asset_job(
    "retrain_predictive_maintenance",
    selection=_with_what_depends_on_it("predictive_maintenance"),
    description="The whole use case: land, transform, train the months that are new, watch.",
)

monthly_predictive_maintenance = dg.ScheduleDefinition(
    name="monthly_predictive_maintenance",
    job=retrain_predictive_maintenance,
    cron_schedule="0 3 3 * *",
    default_status=SWITCHED,
    description="On the 3rd of the month, 03:00 UTC: what failed in the first two days has labelled its last.",
)

weekly_upkeep = dg.ScheduleDefinition(
    name="weekly_upkeep",
    target=dg.AssetSelection.assets("monitoring/lake_upkeep"),
    cron_schedule="0 5 * * 0",
    default_status=SWITCHED,
    description="Sundays, 05:00 UTC: merge small files, expire what no release needs.",
)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="After a run: if all that was built goes together and passed its error-level checks, what"
    " the warehouse holds becomes a release. Rows that have landed since can wait for their own run.",
)
def release_what_is_whole(context: dg.RunStatusSensorContext) -> dg.SkipReason | None:
    """Release what was materialised in the UI, as `make build` does."""
    from orchestration.build import release_if_whole

    assert context.repository_def is not None
    graph = context.repository_def.asset_graph
    released = release_if_whole(load_settings(), context.instance, graph)
    _tell(context)
    if released is None:
        return dg.SkipReason(
            "something is stale, is being built or failed a check, or nothing has changed"
        )
    context.log.info(f"released as {released.name}")
    return None


RETRAINED_BY = {
    "fraud_detection": retrain_fraud_detection,
    "predictive_maintenance": retrain_predictive_maintenance,
    "customer_segmentation": segment_customers,
}


@dg.sensor(
    jobs=list(RETRAINED_BY.values()),
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING
    if load_settings().automation
    else dg.DefaultSensorStatus.STOPPED,
    description="Open drift or decay calls for training outside the schedule, as far as the cool-down and"
    " the budget of seeds/retraining_policy.csv allow; the new model must then win its trial. Every"
    " request and refusal is a row in the use case's decisions.",
)
def retrain_on_drift(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
    """One run per use case that is to be trained, on what has arrived by now."""
    from datetime import UTC, datetime

    from orchestration.defs.history import tell_of_decisions
    from orchestration.layers import USE_CASES
    from orchestration.registry import decisions
    from orchestration.registry.retraining import requests
    from orchestration.warehouse.connect import connect

    settings = load_settings()
    now = datetime.now(UTC).replace(tzinfo=None)
    with connect(settings) as connection:
        before = {name: len(decisions.read(connection, name)) for name in USE_CASES}
        wanted = requests(connection, settings, now)
        for name in USE_CASES:
            if len(decisions.read(connection, name)) > before[name]:
                tell_of_decisions(context.instance, connection, name)
    for use_case, why in wanted.items():
        context.log.info(f"{use_case} is trained: {why}")
        months = _months() if use_case == "customer_segmentation" else []
        yield dg.RunRequest(
            run_key=f"{use_case} {now:%Y-%m-%d %H:%M}",
            job_name=RETRAINED_BY[use_case].name,
            tags={"watershed/retraining": "drift"} | (_range(months) if months else {}),
        )


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="After a run that failed: alerts of the steps and checks that failed.",
)
def tell_what_failed(context: dg.RunStatusSensorContext) -> None:
    """Tell of runs of the UI and of schedules, as `make build` does."""
    _tell(context)


def _tell(context: dg.RunStatusSensorContext) -> None:
    from orchestration.build import tell

    assert context.repository_def is not None
    graph = context.repository_def.asset_graph
    for one in tell(load_settings(), context.instance, graph):
        context.log.warning(one)
