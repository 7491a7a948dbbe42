"""What the other tests take for granted of the servers, MariaDB, Kafka and S3, each through its client."""

from __future__ import annotations

from urllib.parse import urlsplit

import duckdb
import pymysql
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from orchestration.duckdb_session import open_session

TEXT = "naïve Ωμέγα 🌊"


def test_mariadb_keeps_any_text(mariadb_database):
    url = urlsplit(mariadb_database)
    with (
        pymysql.connect(
            host=url.hostname,
            port=url.port,
            user=url.username,
            password=url.password,
            database=url.path[1:],
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("create table t (c text)")
        cursor.execute("insert into t values (%s)", [TEXT])
        cursor.execute("select c from t")
        assert cursor.fetchall() == ((TEXT,),)


def test_kafka_hides_a_transaction_until_it_commits(new_topic):
    topic = new_topic()
    producer = Producer({"bootstrap.servers": topic.servers, "transactional.id": topic.name})
    producer.init_transactions(30)
    for value, end in (("lost", producer.abort_transaction), (TEXT, producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic.name, value)
        end(30)
    consumer = Consumer(
        {"bootstrap.servers": topic.servers, "group.id": "g", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic.name, 0, 0)])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None
    assert message.error() is None
    assert message.value().decode() == TEXT


def test_kafka_makes_no_topic_by_itself(new_topic):
    producer = Producer({"bootstrap.servers": new_topic().servers})
    metadata = producer.list_topics("nobody-made-this", 30)
    assert metadata.topics["nobody-made-this"].error is not None


def test_s3_gives_back_the_parquet_it_was_given_and_nothing_to_a_wrong_secret(s3_bucket):
    def session(secret: str) -> duckdb.DuckDBPyConnection:
        connection = open_session(memory_limit="1GB", extensions=["httpfs"])
        connection.execute(
            f"create secret (type s3, key_id '{s3_bucket.key_id}', secret '{secret}',"
            f" endpoint '{s3_bucket.endpoint}', url_style 'path', use_ssl false)"
        )
        return connection

    path = f"s3://{s3_bucket.name}/day=1/{TEXT}.parquet"
    connection = session(s3_bucket.secret)
    connection.execute(f"copy (select range as i from range(100000)) to '{path}'")
    listed = connection.execute(f"from glob('s3://{s3_bucket.name}/**')").fetchall()
    assert listed == [(path,)]
    total = connection.execute(f"select sum(i) from '{path}'").fetchall()
    assert total == [(4999950000,)]
    with pytest.raises(duckdb.HTTPException, match="403"):
        session("wrong").execute(f"from glob('s3://{s3_bucket.name}/**')")
