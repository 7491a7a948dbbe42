"""What the campaign API promises: campaigns, mailings, coupon redemptions, each published a week at a time."""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl

_ID: dict[str, Any] = {"nullable": False, "checks": pa.Check.gt(0)}
_PUBLISHED_AT = pa.Column(
    pl.Datetime("us"), nullable=False, description="When the record could first be known, UTC."
)

CAMPAIGNS = pa.DataFrameSchema(
    {
        "campaign_id": pa.Column(pl.Int64, **_ID),
        "campaign_type": pa.Column(
            pl.String, pa.Check.isin(["Type A", "Type B", "Type C"]), nullable=False
        ),
        "start_date": pa.Column(pl.Date, nullable=False),
        "end_date": pa.Column(pl.Date, nullable=False),
        "published_at": _PUBLISHED_AT,
    },
    checks=pa.Check(
        lambda data: data.lazyframe.select(pl.col("end_date") >= pl.col("start_date")),
        name="ends_after_it_starts",
    ),
    name="campaign_api.campaigns",
    description="A campaign and the days it runs, both inclusive.",
    metadata={"version": 1},
)

MAILINGS = pa.DataFrameSchema(
    {
        "campaign_id": pa.Column(pl.Int64, **_ID),
        "household_id": pa.Column(pl.Int64, **_ID),
        "published_at": _PUBLISHED_AT,
    },
    name="campaign_api.mailings",
    description="Which household a campaign was mailed to.",
    metadata={"version": 1},
)

REDEMPTIONS = pa.DataFrameSchema(
    {
        "household_id": pa.Column(pl.Int64, **_ID),
        "coupon_upc": pa.Column(pl.Int64, **_ID),
        "campaign_id": pa.Column(pl.Int64, **_ID),
        "redemption_date": pa.Column(pl.Date, nullable=False),
        "published_at": _PUBLISHED_AT,
    },
    name="campaign_api.redemptions",
    description="A coupon of a campaign that a household redeemed.",
    metadata={"version": 1},
)
