"""A Kafka broker that wants a login over TLS, as hosted ones do: what is right gets in, what is wrong is told apart."""

from __future__ import annotations

import os
import uuid
from urllib.parse import parse_qs, urlsplit

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from orchestration.connectors import SOURCE_POSITION
from orchestration.connectors.event_stream import EventTopic, read
from orchestration.errors import MendableError
from orchestration.streaming.engine import Message
from orchestration.streaming.publisher import open_publisher

SERVER = os.environ.get("TEST_KAFKA_TLS_URL", "")
pytestmark = pytest.mark.skipif(
    not SERVER, reason="TEST_KAFKA_TLS_URL names no broker; `make services` starts one"
)
URL = urlsplit(SERVER)


@pytest.fixture(scope="module")
def topic() -> str:
    """With one event, which another client than ours has sent."""
    client = {
        "bootstrap.servers": f"{URL.hostname}:{URL.port}",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": URL.username,
        "sasl.password": URL.password,
        "ssl.ca.location": parse_qs(URL.query)["ssl.ca.location"][0],
    }
    name = f"t-{uuid.uuid4().hex}"
    admin = AdminClient(client)
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    producer = Producer(client)
    producer.produce(name, b'{"n": 1}')
    assert producer.flush(30) == 0
    return name


def source(url: str, topic: str) -> EventTopic:
    return EventTopic(url, topic, "shop", "orders", "WATERSHED_SHOP_URL")


def test_a_login_and_a_certificate_in_the_url_are_all_it_takes_to_read(topic):
    (batch,) = read(source(SERVER, topic), {})
    assert batch.rows["n"].to_pylist() == ["1"]
    assert batch.rows[SOURCE_POSITION].to_pylist() == [f"{topic}/0/0"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (SERVER.replace(str(URL.password), "not-it"), "it refused the user or the password"),
        (SERVER.partition("?")[0], "no TLS connection that both sides accept"),
    ],
    ids=["password", "certificate"],
)
def test_what_is_wrong_with_a_connection_is_told_without_its_password(topic, wrong, told):
    with pytest.raises(MendableError, match=told) as error:
        list(read(source(wrong, topic), {}))
    assert "not-it" not in str(error.value)
    assert str(URL.password) not in str(error.value)


def test_what_a_scorer_publishes_goes_through_the_login_too(topic):
    scores = f"{topic}-scores"
    with open_publisher(source(SERVER, topic)) as publisher:
        assert publisher.create({scores: 1}) == [scores]
        publisher.publish([Message(scores, b"7", b'{"score": 0.5}')], stop=lambda: False)
    (batch,) = read(source(SERVER, scores), {})
    assert batch.rows["score"].to_pylist() == ["0.5"]
