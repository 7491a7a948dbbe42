"""What runs by itself once WATERSHED_AUTOMATION is true: segments by the month, fraud models by the week.

The ingestion schedule of a source stands in its own `defs/raw/<system>/defs.yaml`.
"""

from collections.abc import Iterator

import dagster as dg

from orchestration.settings import load_settings

segment_customers = dg.define_asset_job(
    "segment_customers",
    selection=dg.AssetSelection.groups("customer_segmentation")
    - dg.AssetSelection.key_prefixes("sources"),
    description="The whole use case for one month: land, transform, train, score, watch.",
)


@dg.schedule(
    job=segment_customers,
    cron_schedule="0 7 2 * *",
    default_status=dg.DefaultScheduleStatus.RUNNING
    if load_settings().automation
    else dg.DefaultScheduleStatus.STOPPED,
    description="On the 2nd of the month, 07:00 UTC: the month that has just ended.",
)
def monthly_segmentation() -> Iterator[dg.RunRequest]:
    """One run for the last month that is a partition."""
    from orchestration.defs.vocabulary import segmented_months

    month = segmented_months(load_settings()).get_last_partition_key()
    if month is not None:
        yield dg.RunRequest(run_key=month, partition_key=month)


retrain_fraud_detection = dg.define_asset_job(
    "retrain_fraud_detection",
    selection=dg.AssetSelection.groups("fraud_detection")
    - dg.AssetSelection.key_prefixes("sources"),
    description="The whole use case: land, transform, train the weeks that are new, watch.",
)

weekly_fraud_detection = dg.ScheduleDefinition(
    name="weekly_fraud_detection",
    job=retrain_fraud_detection,
    cron_schedule="0 1 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING
    if load_settings().automation
    else dg.DefaultScheduleStatus.STOPPED,
    description="Mondays, 01:00 UTC: the week whose labels have just become known.",
)
