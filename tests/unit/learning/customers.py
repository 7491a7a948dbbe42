"""Made-up customers of known kinds: what the tests of customer segmentation learn from."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl

TRAITS = (
    "recency", "frequency", "monetary", "basket_size", "breadth", "discount", "coupon", "campaign",
    "private_label", "fresh", "trend",
)  # fmt: skip
JANUARY = dt.datetime(2017, 2, 1)
FEBRUARY = dt.datetime(2017, 3, 1)

# days since last purchase, baskets, dollars a basket, departments, then the six shares and the trend
KINDS = {
    "Champions": (2, 30, 45, 14, 0.15, 0.01, 0.1, 0.25, 0.30, 0.0),
    "Coupon enthusiasts": (5, 15, 30, 9, 0.20, 0.20, 0.8, 0.25, 0.25, 0.0),
    "Fading customers": (25, 6, 30, 6, 0.15, 0.01, 0.1, 0.25, 0.25, -0.8),
    "Growing customers": (5, 8, 30, 7, 0.15, 0.01, 0.1, 0.25, 0.25, 0.8),
    "Own-brand savers": (10, 7, 15, 5, 0.05, 0.01, 0.1, 0.80, 0.05, 0.0),
    "Lapsed customers": (120, 0, 0, 0, None, None, 0.0, None, None, None),
}


def archetypes() -> pl.DataFrame:
    weights = {
        "Champions": {"frequency": 2, "monetary": 2, "breadth": 1},
        "Coupon enthusiasts": {"coupon": 2, "campaign": 2},
        "Fading customers": {"trend": -2, "recency": 1},
        "Growing customers": {"trend": 2},
        "Own-brand savers": {"private_label": 2, "fresh": -1},
        "Lapsed customers": {"recency": 2, "frequency": -2, "monetary": -2, "basket_size": -1},
        "Fresh-food lovers": {"fresh": 2},
    }
    return pl.DataFrame(
        [
            {"segment_name": name, "campaign_idea": f"Do something for {name.lower()}."}
            | {trait: float(given.get(trait, 0)) for trait in TRAITS}
            for name, given in weights.items()
        ]
    )


def customers(as_of_at: dt.datetime = JANUARY, *, each: int = 40, seed: int = 1) -> pl.DataFrame:
    """`each` households of every kind, in the order of `KINDS`, as a month's training set.

    Household h is of kind `(h - 1) // each` whatever the month and seed; only its figures vary.
    Champions have kids, nobody else does; every second household has known demographics.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number, household in enumerate(range(1, each * len(KINDS) + 1)):
        kind = list(KINDS)[number // each]
        recency, baskets, dollars, departments, *shares, trend = KINDS[kind]
        discount, coupon, response, own_brand, fresh = (
            None if share is None else float(np.clip(share + rng.normal(0, 0.02), 0, 1))
            for share in shares
        )
        baskets = round(baskets * rng.uniform(0.85, 1.15))
        sales = round(baskets * dollars * rng.uniform(0.9, 1.1), 2)
        last = round(sales * 2 / 3 * (1 + (trend or 0)) / 2, 2)
        known = household % 2 == 0
        rows.append(
            {
                "household_id": household,
                "as_of_at": as_of_at,
                "days_since_last_purchase": round(recency * rng.uniform(0.8, 1.2)),
                "baskets_count_90d": baskets,
                "sales_usd_sum_90d": sales,
                "sales_usd_sum_60d": last,
                "sales_usd_sum_prior_60d": round(sales * 2 / 3 - last, 2),
                "basket_usd_avg_90d": sales / baskets if baskets else None,
                "departments_count_90d": max(departments + int(rng.integers(-1, 2)), 0),
                "retail_discount_share_90d": discount,
                "coupon_lines_share_90d": coupon,
                "campaign_response_rate_365d": response,
                "private_label_share_90d": own_brand,
                "fresh_share_90d": fresh,
                "sales_trend_60d": trend and float(np.clip(trend + rng.normal(0, 0.1), -1, 1)),
                "has_demographics": known,
                "age_band": "35-44" if known else None,
                "income_band": "50-74K" if known else None,
                "household_size": "2" if known else None,
                "kids_count": ("2" if kind == "Champions" else "0") if known else None,
                "home_ownership": None,
                "marital_status": None,
            }
        )
    decimals = [name for name in rows[0] if name.startswith("sales_usd")]
    return pl.DataFrame(
        rows,
        schema_overrides={"home_ownership": pl.String, "marital_status": pl.String},
        infer_schema_length=None,
    ).with_columns(
        pl.col(decimals).cast(pl.Decimal(14, 2)), pl.col("as_of_at").cast(pl.Datetime("us"))
    )


def kind_of(household: int, each: int = 40) -> str:
    return list(KINDS)[(household - 1) // each]
