"""What customer segmentation promises: a month's training set going in, its segments coming out."""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl

_FINITE = float("inf")


def _count(dtype: Any = pl.Int64) -> pa.Column:
    return pa.Column(dtype, pa.Check.ge(0), nullable=False)


def _usd() -> pa.Column:
    return pa.Column(pl.Decimal(14, 2), pa.Check.ge(0), nullable=False)


def _share() -> pa.Column:
    """A share of a household's purchases: null without purchases. NaN is out of range."""
    return pa.Column(pl.Float64, pa.Check.in_range(0, 1), nullable=True)


def _known(dtype: Any = pl.String) -> pa.Column:
    return pa.Column(dtype, nullable=True)


_HOUSEHOLD = {
    "household_id": pa.Column(pl.Int64, pa.Check.gt(0), nullable=False, unique=True),
    "as_of_at": pa.Column(pl.Datetime("us"), nullable=False),
}


def _one_month(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col("as_of_at").n_unique() <= 1)


TRAINING_FRAME = pa.DataFrameSchema(
    {
        **_HOUSEHOLD,
        "days_since_first_purchase": _count(pl.Int32),
        "days_since_last_purchase": _count(pl.Int32),
        "baskets_count_30d": _count(),
        "baskets_count_90d": _count(),
        "sales_usd_sum_30d": _usd(),
        "sales_usd_sum_90d": _usd(),
        "basket_usd_avg_90d": pa.Column(
            pl.Float64, pa.Check.in_range(0, _FINITE, include_max=False), nullable=True
        ),
        "stores_count_90d": _count(),
        "products_count_90d": _count(),
        "departments_count_90d": _count(),
        "private_label_share_90d": _share(),
        "fresh_share_90d": _share(),
        "grocery_share_90d": _share(),
        "household_share_90d": _share(),
        "fuel_share_90d": _share(),
        "other_share_90d": _share(),
        "retail_discount_share_90d": _share(),
        "discounted_lines_share_90d": _share(),
        "coupon_lines_share_90d": _share(),
        "coupon_discount_usd_sum_90d": _usd(),
        "mailings_count_365d": _count(),
        "campaigns_redeemed_count_365d": _count(),
        "redemptions_count_365d": _count(),
        "campaign_response_rate_365d": pa.Column(
            pl.Float64,
            pa.Check.in_range(0, _FINITE, include_max=False),
            nullable=True,
            description="Can exceed 1: a mailing may leave the window before its redemption does.",
        ),
        "sales_usd_sum_60d": _usd(),
        "sales_usd_sum_prior_60d": _usd(),
        "sales_trend_60d": pa.Column(pl.Float64, pa.Check.in_range(-1, 1), nullable=True),
        "has_demographics": pa.Column(pl.Boolean, nullable=False),
        "age_band": _known(),
        "income_band": _known(),
        "household_size": _known(),
        "household_composition": _known(),
        "kids_count": _known(),
        "home_ownership": _known(),
        "marital_status": _known(),
    },
    checks=pa.Check(_one_month, name="one_month"),
    name="training_sets.train_customer_segmentation",
    description="One month's households: what they bought, and who they are where they told us.",
    metadata={"version": 2},
)

SEGMENTS = pa.DataFrameSchema(
    {
        **_HOUSEHOLD,
        "segment_id": pa.Column(pl.Int32, pa.Check.ge(1), nullable=False),
        "segment_name": pa.Column(pl.String, pa.Check.str_length(min_value=1), nullable=False),
        "confidence": pa.Column(pl.Float64, pa.Check.in_range(0, 1), nullable=False),
        "model_version": pa.Column(
            pl.String,
            pa.Check.str_matches(r"^customer_segmentation-\d{4}-\d{2}-[0-9a-f]{8}$"),
            nullable=False,
        ),
    },
    checks=pa.Check(_one_month, name="one_month"),
    strict=True,
    name="predictions.customer_segments",
    description="Each household's segment as of a month's end, and the model that said so.",
    metadata={"version": 1},
)
