"""What the retailer's database promises: purchases, products, demographics."""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl

_ID: dict[str, Any] = {"nullable": False, "checks": pa.Check.gt(0)}
_MONEY: dict[str, Any] = {"nullable": False, "checks": pa.Check.ge(0)}
_TEXT: dict[str, Any] = {"nullable": True}

TRANSACTIONS = pa.DataFrameSchema(
    {
        "household_id": pa.Column(pl.Int64, **_ID),
        "store_id": pa.Column(pl.Int64, **_ID),
        "basket_id": pa.Column(pl.Int64, **_ID),
        "product_id": pa.Column(pl.Int64, **_ID),
        "quantity": pa.Column(pl.Int64, pa.Check.ge(0), nullable=False),
        "sales_value": pa.Column(pl.Decimal(12, 2), **_MONEY),
        "retail_disc": pa.Column(pl.Decimal(12, 2), **_MONEY),
        "coupon_disc": pa.Column(pl.Decimal(12, 2), **_MONEY),
        "coupon_match_disc": pa.Column(pl.Decimal(12, 2), **_MONEY),
        "transaction_timestamp": pa.Column(pl.Datetime("us"), nullable=False),
    },
    name="retail_db.transactions",
    description="One line per product in a basket; money in US dollars, time in UTC.",
    metadata={"version": 1},
)

PRODUCTS = pa.DataFrameSchema(
    {
        "product_id": pa.Column(pl.Int64, **_ID),
        "manufacturer_id": pa.Column(pl.Int64, **_ID),
        "department": pa.Column(pl.String, **_TEXT),
        "brand": pa.Column(pl.String, pa.Check.isin(["National", "Private"]), nullable=False),
        "product_category": pa.Column(pl.String, **_TEXT),
        "product_type": pa.Column(pl.String, **_TEXT),
        "package_size": pa.Column(pl.String, **_TEXT),
    },
    name="retail_db.products",
    description="The product catalogue; `Private` is the retailer's own brand.",
    metadata={"version": 1},
)

DEMOGRAPHICS = pa.DataFrameSchema(
    {
        "household_id": pa.Column(pl.Int64, **_ID),
        "age": pa.Column(pl.String, **_TEXT),
        "income": pa.Column(pl.String, **_TEXT),
        "home_ownership": pa.Column(pl.String, **_TEXT),
        "marital_status": pa.Column(pl.String, **_TEXT),
        "household_size": pa.Column(pl.String, **_TEXT),
        "household_comp": pa.Column(pl.String, **_TEXT),
        "kids_count": pa.Column(pl.String, **_TEXT),
    },
    name="retail_db.demographics",
    description="Bands of age, income and family of the households that told us.",
    metadata={"version": 1},
)
