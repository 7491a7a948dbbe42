"""A team's warehouse with its Parquet files in an S3-compatible store."""

from __future__ import annotations

import pandera.polars as pa
import polars as pl
import pyarrow as arrow
import pytest

from orchestration.connectors import Batch
from orchestration.errors import MendableError
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.masked import share, write_down
from orchestration.warehouse.privacy import DIRECT
from orchestration.warehouse.releases import release

TABLE = RawTable(
    "shop__sales",
    pa.DataFrameSchema({"id": pa.Column(pl.Int64)}, name="shop.sales", metadata={"version": "1"}),
)


@pytest.fixture
def on_s3(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_bucket.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_bucket.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_bucket.secret)
    return load_settings(lake_path=f"s3://{s3_bucket.name}/lake/")


def load(settings):
    rows = arrow.table({"id": range(1_000)})
    return land(settings, TABLE, lambda position: iter([Batch(rows, {"n": 1}, first_time=True)]))


def test_rows_land_in_a_bucket_and_come_back(on_s3):
    assert load(on_s3).rows_kept == 1_000
    with connect(on_s3, read_only=True) as connection:
        assert connection.execute("select sum(id) from raw.shop__sales").fetchone() == (499_500,)
        files = connection.execute(
            "select data_file from ducklake_list_files('lake', 'shop__sales', schema => 'raw')"
        ).fetchall()
    assert files
    assert all(file.startswith(on_s3.lake_path) for (file,) in files)


def test_a_store_that_refuses_is_named_and_the_secret_is_not(on_s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(MendableError, match=r"the lake at s3://") as caught:
        load(on_s3)
    assert "not-the-secret" not in str(caught.value)


def test_what_is_masked_is_shared_in_a_bucket_of_the_others(settings, s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_bucket.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_bucket.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_bucket.secret)
    shared = load_settings(
        masked_lake_path=f"s3://{s3_bucket.name}/masked/", privacy_key="of-sixteen-letters-or-more"
    )
    with connect(shared) as connection:
        connection.execute("create schema features")
        connection.execute("create table features.sales as select range as card_id from range(50)")
        write_down(connection, shared, {"features.sales": {"card_id": DIRECT}})
        release(connection, shared, checks_passed=1, checks_warned=0)
        attach = share(connection, shared)[1]
        connection.execute(attach.replace("as lake", "as others"))
        rows = connection.execute("select distinct length(card_id) from others.published.sales")
        assert rows.fetchall() == [(32,)]
