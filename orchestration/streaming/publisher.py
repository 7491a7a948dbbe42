"""Publishes messages to topics of Kafka (`kafka://`) or of the log on disk (`log://`)."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.connectors import event_log
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    from orchestration.connectors.event_stream import EventTopic
    from orchestration.streaming.engine import Message

_log = logging.getLogger(__name__)

UNCONFIRMED = 10_000
"""The most messages that may be on their way: what a kill can lose of what was published last."""


def open_publisher(source: EventTopic) -> Publisher:
    """A publisher to the place where `source` is; use it in `with`.

    Raises:
        MendableError: the URL or an option is not of the expected form.
    """
    return (LogPublisher if source.url.startswith("log://") else KafkaPublisher)(source)


class Publisher(ABC):
    """Publishes to the topics of one place. Not for several threads."""

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def create(self, topics: Mapping[str, int]) -> list[str]:
        """Make the topics that are absent, with so many partitions; their names.

        Raises:
            SourceUnavailableError: the broker does not answer.
            MendableError: a topic cannot be made.
        """

    def meet(self, topics: Sequence[str]) -> None:
        """Find out where topics stand, so that the first message to each need not wait for that."""
        return

    @abstractmethod
    def publish(self, messages: Sequence[Message], stop: Callable[[], bool]) -> None:
        """Publish messages in their order; waits while too many are on their way, unless `stop`.

        Raises:
            MendableError: a topic takes no messages.
        """

    def serve(self) -> None:
        """Do what is due, such as hearing what was delivered."""
        return

    @abstractmethod
    def close(self) -> None:
        """Wait a little for what is on its way, and let go."""


class LogPublisher(Publisher):
    """Appends to the log on disk."""

    def __init__(self, source: EventTopic) -> None:
        self._folder = event_log.folder_of(source.url)
        self._producers: dict[str, event_log.Producer] = {}

    def create(self, topics: Mapping[str, int]) -> list[str]:
        """Make the topics that are absent."""
        absent = [t for t in topics if not (self._folder / t / "topic.json").exists()]
        for topic in absent:
            event_log.create_topic(self._folder, topic, topics[topic])
        return absent

    def publish(self, messages: Sequence[Message], stop: Callable[[], bool]) -> None:
        """Append; what is written outlives the process."""
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            by_topic.setdefault(message.topic, []).append(message)
        for topic, own in by_topic.items():
            if topic not in self._producers:
                self._producers[topic] = event_log.Producer(self._folder, topic)
            self._producers[topic].append_batch([m.value for m in own], [m.key for m in own])

    def close(self) -> None:
        """Let others write."""
        for producer in self._producers.values():
            producer.close()


class KafkaPublisher(Publisher):
    """Produces to Kafka, without waiting for more to share a request."""

    def __init__(self, source: EventTopic) -> None:
        from confluent_kafka import Producer

        from orchestration.connectors.event_kafka import client_options

        options = client_options(source)
        self._source, self._refused = source, ""
        self._options = {
            name: value
            for name, value in options.items()
            if name not in ("group.id", "queued.max.messages.kbytes")
        }
        self._producer = Producer(
            self._options
            | {
                "linger.ms": 1,
                "enable.idempotence": True,
                "queue.buffering.max.messages": UNCONFIRMED,
                "message.timeout.ms": 0,  # a broker that is away is waited for
            }
        )

    def create(self, topics: Mapping[str, int]) -> list[str]:
        """Make the topics that are absent."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient(self._options)
        try:
            known = self._producer.list_topics(timeout=10).topics  # it is connected from then on
            absent = [topic for topic in topics if topic not in known]
            made = admin.create_topics([NewTopic(t, topics[t]) for t in absent]) if absent else {}
        except KafkaException as error:
            raise SourceUnavailableError(
                f"the broker of {self._source.name}",
                expected="a broker that answers",
                arrived=error.args[0].name(),
                mend=f"start the broker or mend {self._source.url_setting} in .env",
            ) from None
        created = []
        for topic, future in made.items():
            try:
                future.result(30)
                created.append(topic)
            except KafkaException as error:
                # A broker hears of new topics a little later than the controller that makes them.
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                    raise self._error(topic, error.args[0].name()) from None
        return created

    def meet(self, topics: Sequence[str]) -> None:
        """Ask the broker; one that is away is waited for when there is something to publish."""
        from confluent_kafka import KafkaException

        try:
            for topic in topics:
                self._producer.list_topics(topic, timeout=5)
        except KafkaException as error:
            _log.warning("the broker of %s: %s", self._source.name, error.args[0].name())

    def publish(self, messages: Sequence[Message], stop: Callable[[], bool]) -> None:
        """Hand messages to librdkafka, which sends them at once."""
        produce = self._producer.produce
        for topic, key, value in messages:
            while True:
                try:
                    produce(topic, value, key, on_delivery=self._heard)
                    break
                except BufferError:
                    self._producer.poll(0.05)
                    if stop():
                        return
        self._producer.poll(0)
        if self._refused:
            topic, _, name = self._refused.partition(" ")
            raise self._error(topic, name)

    def serve(self) -> None:
        """Hear what was delivered."""
        self._producer.poll(0)

    def close(self) -> None:
        """Wait up to 5 s for what is on its way; what is not confirmed is scored again at the next start."""
        until = time.monotonic() + 5
        while len(self._producer) and time.monotonic() < until:
            self._producer.poll(0.05)
        self._producer.purge()
        self._producer.flush(1)

    def _heard(self, error: Any, message: Any) -> None:
        if error is not None and not error.name().startswith("_PURGE"):
            self._refused = f"{message.topic()} {error.name()}"

    def _error(self, topic: str, name: str) -> MendableError:
        return MendableError(
            f"topic {topic} beside {self._source.name}",
            expected="a topic that takes what is published",
            arrived=f"Kafka's error {name}",
            mend="check that it exists and that this user may write to it, then start again: nothing is lost",
        )
