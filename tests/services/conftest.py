"""The real servers: every test gets a database, topic or bucket of its own. `make services` starts them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import pytest


class Topic(NamedTuple):
    """A Kafka topic: `servers` is what a client calls `bootstrap.servers`."""

    servers: str
    name: str


class Bucket(NamedTuple):
    """A bucket of the S3-compatible server: plain HTTP, path-style addresses, `host:port` as endpoint."""

    name: str
    endpoint: str
    key_id: str
    secret: str


def server(name: str) -> SplitResult:
    """Where the server `name` is; skips the test when nobody says."""
    variable = f"TEST_{name.upper()}_URL"
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no server; `make services` starts one")
    return urlsplit(os.environ[variable])


def fresh() -> str:
    return f"t_{uuid.uuid4().hex[:16]}"


@pytest.fixture
def postgresql_database() -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    import psycopg

    url, name = server("postgresql"), fresh()
    with psycopg.connect(url.geturl(), autocommit=True) as connection:
        connection.execute(f"create database {name}")
        yield url._replace(path=f"/{name}").geturl()
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def mariadb_database() -> Iterator[str]:
    """URL of an empty MariaDB database."""
    import pymysql

    url, name = server("mariadb"), fresh()
    with (
        pymysql.connect(
            host=url.hostname, port=url.port, user=url.username, password=url.password
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"create database {name}")
        yield url._replace(path=f"/{name}").geturl()
        cursor.execute(f"drop database {name}")


@pytest.fixture
def new_topic() -> Iterator[Callable[..., Topic]]:
    """Makes empty Kafka topics: `new_topic(partitions=1, **config)`, config as `{"retention.ms": "1"}`."""
    from confluent_kafka.admin import AdminClient, NewTopic

    servers = server("kafka").netloc
    admin = AdminClient({"bootstrap.servers": servers})
    made: list[str] = []

    def new(partitions: int = 1, **config: str) -> Topic:
        name = fresh()
        topic = NewTopic(name, partitions, replication_factor=1, config=config)
        admin.create_topics([topic])[name].result(30)
        made.append(name)
        return Topic(servers, name)

    yield new
    for deleted in admin.delete_topics(made).values() if made else ():
        deleted.result(30)


@pytest.fixture
def s3_bucket() -> Bucket:
    """An empty bucket; it goes when its server does, which fails at deleting many objects at once."""
    from pyarrow.fs import S3FileSystem

    url = server("s3")
    bucket = Bucket(
        fresh().replace("_", "-"),
        f"{url.hostname}:{url.port}",
        str(url.username),
        str(url.password),
    )
    store = S3FileSystem(
        access_key=bucket.key_id,
        secret_key=bucket.secret,
        endpoint_override=bucket.endpoint,
        scheme=url.scheme,
        region="us-east-1",
        allow_bucket_creation=True,
    )
    store.create_dir(bucket.name)
    return bucket
