"""A person is gone from a team's warehouse: PostgreSQL's files, a bucket's objects, what is encrypted."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, S3FileSystem

from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.erasure import forget
from orchestration.warehouse.releases import releases, verify
from tests.unit.warehouse.test_erasure import ID, PAYMENT, WHO, everyone_else, fill

KEY = "a key of the tests, of some length"


@pytest.fixture
def on_postgresql(postgresql_database, monkeypatch, tmp_path):
    url = urlsplit(postgresql_database)
    monkeypatch.setenv("PGPASSWORD", url.password or "")
    place = f"dbname={url.path[1:]} host={url.hostname} port={url.port} user={url.username}"
    return {
        "data_dir": tmp_path / "data", "catalog": f"postgres:{place}", "privacy_key": KEY,
        "lock_timeout_seconds": 10,
    }  # fmt: skip


@pytest.fixture
def in_a_bucket(s3_bucket, monkeypatch):
    """A client of the bucket, and the settings of a lake in it."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "when_required")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_bucket.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_bucket.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_bucket.secret)
    store = S3FileSystem(
        access_key=s3_bucket.key_id, secret_key=s3_bucket.secret, scheme="http",
        endpoint_override=s3_bucket.endpoint, region="us-east-1",
    )  # fmt: skip
    return store, {"lake_path": f"s3://{s3_bucket.name}/lake/", "privacy_key": KEY}


def held_by_postgresql(database, *numbers):
    """The tables, catalogs of PostgreSQL's own among them, whose files hold a number as text."""
    found = set()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("checkpoint")  # what is in memory is in the files
        for table, path in admin.execute(
            "select oid::regclass::text, pg_relation_filepath(oid) from pg_class"
            " where relkind in ('r', 't', 'i') and pg_relation_filepath(oid) is not null"
        ).fetchall():
            (data,) = admin.execute("select pg_read_binary_file(%s)", [path]).fetchone()
            for number in numbers:
                if str(number).encode() in data.replace(f"{number}1".encode(), b""):
                    found.add(table)
    return found


def objects_of(store, settings):
    """Each object of the lake, got by its name."""
    place = settings.lake_path.removeprefix("s3://").rstrip("/")
    for one in store.get_file_info(FileSelector(place, recursive=True)):
        if one.is_file:
            with store.open_input_file(one.path) as file:
                yield one.path, file.read()


def held_by(objects, *numbers):
    found = set()
    for name, data in objects:
        text = data
        if name.endswith(".parquet") and data[-4:] == b"PAR1":
            text += str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        for number in numbers:
            for shape in (str(number).encode(), number.to_bytes(8, "little")):
                if shape in text.replace(f"{number}1".encode(), b""):
                    found.add(name)
    return found


def test_on_postgresql_no_row_live_or_dead_and_no_statistic_holds_the_person(
    on_postgresql, postgresql_database
):
    settings = load_settings(**on_postgresql)
    fill(settings)
    with psycopg.connect(postgresql_database, autocommit=True) as admin:
        admin.execute("analyze")
    assert {"ducklake_file_column_stats", "pg_statistic"} <= held_by_postgresql(
        postgresql_database, ID, PAYMENT
    )
    before = everyone_else(settings)
    what = forget(settings, WHO)
    assert {number for number, *_ in what.releases} == {2, 3}
    assert held_by_postgresql(postgresql_database, ID, PAYMENT) == set()
    files = [(str(f), f.read_bytes()) for f in Path(settings.lake_path).rglob("*") if f.is_file()]
    assert held_by(files, ID, PAYMENT) == set()
    assert everyone_else(settings) == before
    with connect(settings, read_only=True) as connection:
        for one in releases(connection):
            assert all(told == now for _, told, now in verify(connection, one.name))


@pytest.mark.parametrize("level", ["repeatable read", "read committed"])
def test_on_postgresql_a_reader_of_before_is_waited_for_and_then_named(
    level, on_postgresql, postgresql_database
):
    settings = load_settings(**on_postgresql | {"lock_timeout_seconds": 1})
    fill(settings)
    with psycopg.connect(postgresql_database) as reader:
        reader.execute(f"set transaction isolation level {level}")
        reader.execute("select count(*) from ducklake_snapshot")
        with pytest.raises(WarehouseBusyError, match="run the command again: it ends this"):
            forget(settings, WHO)
    forget(settings, WHO)
    assert held_by_postgresql(postgresql_database, ID, PAYMENT) == set()


def test_on_postgresql_who_may_not_write_its_tables_anew_is_told_who_may(
    on_postgresql, postgresql_database, monkeypatch
):
    settings = load_settings(**on_postgresql)
    fill(settings)
    url = urlsplit(postgresql_database)
    user = f"{url.path[1:]}_writer"
    with psycopg.connect(postgresql_database, autocommit=True) as admin:
        admin.execute(f"create user {user} password 'only-for-this-test'")
        admin.execute(f"grant all on all tables in schema public to {user}")
        admin.execute(f"grant all on schema public to {user}")
    monkeypatch.setenv("PGPASSWORD", "only-for-this-test")
    theirs = load_settings(
        **on_postgresql
        | {"catalog": on_postgresql["catalog"].replace(f"user={url.username}", f"user={user}")}
    )
    try:
        with pytest.raises(MendableError, match=r"let the owner run: psql -c .vacuum \(full"):
            forget(theirs, WHO)
    finally:
        with psycopg.connect(postgresql_database, autocommit=True) as admin:
            admin.execute(f"drop owned by {user} cascade")
            admin.execute(f"drop user {user}")


@pytest.mark.parametrize("where", ["embedded", "postgresql"])
def test_in_a_bucket_no_object_holds_the_person_and_those_that_did_are_gone(
    where, in_a_bucket, request
):
    store, options = in_a_bucket
    if where == "postgresql":
        options = request.getfixturevalue("on_postgresql") | options
    settings = load_settings(**options)
    fill(settings)
    held = held_by(objects_of(store, settings), ID, PAYMENT)
    assert held
    before = everyone_else(settings)
    forget(settings, WHO)
    left = dict(objects_of(store, settings))
    assert held_by(left.items(), ID, PAYMENT) == set()
    assert not held & left.keys()
    for name in held:
        with pytest.raises(FileNotFoundError):
            store.open_input_file(name)
    assert everyone_else(settings) == before


@pytest.mark.parametrize("where", ["embedded", "in a bucket"])
def test_in_an_encrypted_lake_no_file_once_decrypted_holds_the_person(where, request):
    options = {"privacy_key": KEY}
    if where == "in a bucket":
        options = request.getfixturevalue("in_a_bucket")[1]
    settings = load_settings(**options, encrypted=True)
    fill(settings)
    assert decrypted(settings, ID, PAYMENT)
    before = everyone_else(settings)
    forget(settings, WHO)
    assert decrypted(settings, ID, PAYMENT) == set()
    assert everyone_else(settings) == before
    held = settings.catalog_file.read_bytes()
    assert str(ID).encode() not in held.replace(f"{ID}1".encode(), b"")
    assert str(PAYMENT).encode() not in held


def decrypted(settings, *numbers):
    """The files of the lake, all that lie there, that hold a number in any column once decrypted."""
    found = set()
    with connect(settings, read_only=True) as connection:
        keys = dict(
            connection.execute(
                "select parse_filename(path), encryption_key from __ducklake_metadata_lake.ducklake_data_file"
                " union all"
                " select parse_filename(path), encryption_key from __ducklake_metadata_lake.ducklake_delete_file"
            ).fetchall()
        )
        for (path,) in connection.execute(
            f"select file from glob('{settings.lake_path}**/*.parquet')"
        ).fetchall():
            key = keys[path.rpartition("/")[2]]  # none is left that the catalog does not know
            text = str(
                connection.execute(
                    f"from read_parquet('{path}', encryption_config = {{footer_key_value: from_base64('{key}')}})"
                ).fetchall()
            )
            if any(str(number) in text.replace(f"{number}1", "") for number in numbers):
                found.add(path)
    return found
