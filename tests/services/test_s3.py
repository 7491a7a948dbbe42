"""A real S3-compatible store: lake files in a bucket, and what is said when it refuses."""

from __future__ import annotations

import gzip
import io
import os
import uuid
from dataclasses import replace
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from orchestration.connectors import SOURCE_POSITION, Span
from orchestration.connectors.lake_files import LakeFiles, read
from orchestration.errors import MendableError

SERVER = os.environ.get("TEST_S3_URL")
pytestmark = pytest.mark.skipif(SERVER is None, reason="TEST_S3_URL names no server")


class Bucket:
    """A bucket of its own for a test; it goes when its server does."""

    def __init__(self):
        url = urlsplit(SERVER)
        self.name = f"t-{uuid.uuid4().hex[:16]}"
        self.store = S3FileSystem(
            access_key=url.username,
            secret_key=url.password,
            endpoint_override=f"{url.scheme}://{url.hostname}:{url.port}",
            region="us-east-1",
            allow_bucket_creation=True,
            allow_delayed_open=True,  # a small object is one request, which every server knows
        )
        self.store.create_dir(self.name)

    def put(self, key, raw):
        with self.store.open_output_stream(f"{self.name}/{key}", compression=None) as stream:
            stream.write(raw)

    def lake(self, file_format="csv", prefix="sales", pattern="**"):
        return LakeFiles(
            location=f"s3://{self.name}/{prefix}",
            pattern=pattern,
            file_format=file_format,
            system="shop",
            table="sales",
            location_setting="WATERSHED_SHOP_FILES",
        )


@pytest.fixture
def bucket(monkeypatch):
    url = urlsplit(SERVER)
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "when_required")
    made = Bucket()
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", url.username)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", url.password)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{url.scheme}://{url.hostname}:{url.port}")
    return made


def parquet(table):
    raw = io.BytesIO()
    pq.write_table(table, raw)
    return raw.getvalue()


def ids(batches):
    return [row["id"] for batch in batches for row in batch.rows.to_pylist()]


def test_each_format_comes_from_a_bucket_with_its_folders(bucket):
    bucket.put("sales/month=4/a.parquet", parquet(pa.table({"id": ["1"]})))
    bucket.put("sales/month=4/a.csv.gz", gzip.compress(b"id\n1\n"))
    bucket.put("sales/month=4/a.ndjson", b'{"id":1}\n')
    bucket.put("sales/_temporary/b.csv.gz", b"unfinished")
    bucket.put("other/c.csv.gz", b"of another table")
    for file_format in ("parquet", "csv", "ndjson"):
        (batch,) = read(bucket.lake(file_format, pattern=f"**/*.{file_format}*"), {})
        assert batch.rows.to_pylist() == [{"id": "1", "month": "4"}]
        assert batch.where.startswith("month=4/a.")


def test_an_object_is_read_once_and_again_when_it_is_another(bucket):
    bucket.put("sales/a.csv", b"id\n1\n")
    bucket.put("sales/b.csv", b"id\n2\n")
    (first,) = read(bucket.lake(), {})
    assert ids([first]) == ["1", "2"]
    bucket.put("sales/a.csv", b"id\n7\n")
    (second,) = read(bucket.lake(), first.position)
    assert (ids([second]), second.replaces) == (["7"], ("a.csv",))
    assert ids(read(bucket.lake(), second.position)) == []
    (again,) = read(bucket.lake(), second.position, Span("b"))
    assert (ids([again]), again.replaces) == (["2"], ("b.csv",))


def test_any_name_is_safe_in_a_bucket(bucket):
    names = ["q'uo\"te", "zero\u200bwidth", "a[1]*?", "sp ace", "pl+us%20", "é", "x;drop"]
    for name in names:
        bucket.put(f"sales/k={name}/{name}.csv", b"id\n1\n")
    (batch,) = read(bucket.lake(), {})
    assert set(batch.rows[SOURCE_POSITION].to_pylist()) == {f"k={n}/{n}.csv" for n in names}
    assert batch.rejected is None


def test_a_broken_object_is_rejected_and_the_others_land(bucket):
    whole = parquet(pa.table({"id": list(range(1000))}))
    bucket.put("sales/a.parquet", whole[:-50])
    bucket.put("sales/b.parquet", whole)
    (batch,) = read(bucket.lake("parquet"), {})
    assert batch.rows.num_rows == 1000
    assert batch.rejected[SOURCE_POSITION].to_pylist() == ["a.parquet"]


def test_many_objects_are_fetched_side_by_side_and_come_in_order(bucket):
    for number in range(60):
        bucket.put(f"sales/{number:02}.csv", b"id\n%d\n" % number)
    assert ids(read(bucket.lake(), {})) == [str(number) for number in range(60)]
    stopped = read(bucket.lake(pattern="*"), {}, batch_rows=1)
    assert ids([next(stopped)]) == ["0"]
    stopped.close()


def test_an_object_larger_than_a_request_comes_whole(bucket):
    table = pa.table({"id": list(range(1_000_000))})
    bucket.put("sales/a.parquet", parquet(table))
    batches = list(read(bucket.lake("parquet"), {}))
    assert [batch.completes for batch in batches] == [False] * 9 + [True]
    assert pa.concat_tables(batch.rows for batch in batches).equals(table)


def test_a_prefix_without_objects_brings_nothing(bucket):
    assert list(read(bucket.lake(), {})) == []


def test_a_bucket_that_is_not_there_is_said(bucket):
    source = replace(bucket.lake(), location="s3://no-such-bucket-here/x")
    with pytest.raises(MendableError, match="no bucket no-such-bucket-here"):
        list(read(source, {}))


def test_refused_credentials_are_said_and_never_shown(bucket, monkeypatch):
    for secret, key in (("s3cret-but-wrong", None), (None, "key-but-wrong")):
        with monkeypatch.context() as wrong:
            if secret:
                wrong.setenv("AWS_SECRET_ACCESS_KEY", secret)
            if key:
                wrong.setenv("AWS_ACCESS_KEY_ID", key)
            with pytest.raises(MendableError, match="credentials that are refused") as caught:
                list(read(bucket.lake(), {}))
            assert "but-wrong" not in str(caught.value)
