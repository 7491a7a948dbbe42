"""The consumer of a Kafka topic, through librdkafka: partitions assigned by hand, committed events only."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from confluent_kafka import Consumer as Client
from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from orchestration.connectors.event_consumer import TIMEOUT_SECONDS, Consumer, Described
from orchestration.connectors.event_log import Event, NoTopicError, in_columns
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.event_stream import EventTopic

_log = logging.getLogger(__name__)
_OURS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    "check.crcs": True,
}
"""What the guarantees rest on."""
_REFUSALS = {
    "_AUTHENTICATION": "it refused the user or the password",
    "SASL_AUTHENTICATION_FAILED": "it refused the user or the password",
    "_SSL": "no TLS connection that both sides accept",
}
_LASTING = _REFUSALS | {
    "_RESOLVE": "there is no host of that name",
    "_ALL_BROKERS_DOWN": "nothing listens there",
}
_SAYS = _LASTING | {
    "_TRANSPORT": "no connection, or it broke off",
    "_TIMED_OUT": "no answer in time",
    "_BAD_MSG": "a message that does not fit its checksum",
}
_UNREADABLE = {
    "UNKNOWN_TOPIC_OR_PART": "a broker with other topics",
    "_UNKNOWN_TOPIC": "a broker with other topics",
    "UNKNOWN_TOPIC_ID": "a broker with other topics",
    "TOPIC_AUTHORIZATION_FAILED": "a topic that this user may not read",
}


class KafkaConsumer(Consumer):
    """Reads Kafka.

    Raises:
        MendableError: the URL or an option is not of the expected form.
    """

    def __init__(self, source: EventTopic) -> None:
        super().__init__(source)
        self._complaint = ""
        self._ends: dict[int, int] = {}
        options = client_options(source)
        try:
            self._client = Client(options | _OURS | {"error_cb": self._hear})
            self._admin = AdminClient(options)
        except KafkaException as error:
            # Its text can hold the option's value: only names that we gave are repeated.
            named = [name for name in options if f'"{name}"' in str(error)]
            raise MendableError(
                f"an option of {source.name}",
                expected="options that librdkafka knows, with values that it takes",
                arrived=", ".join(named) or "one that it does not",
                mend=f"change it in {source.url_setting} or in the source's options",
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _describe(self) -> Described:
        topic, until = self.source.topic, time.monotonic() + TIMEOUT_SECONDS
        self._complaint = self.trouble = ""
        while True:  # a broker that is there answers at once; one that refuses is not waited for
            try:
                self._client.list_topics(topic, timeout=1.0)
                break
            except KafkaException as error:
                self._client.poll(0)  # lets `_hear` hear
                if self._complaint in _LASTING or time.monotonic() >= until:
                    raise self._error(self._complaint or error.args[0].name()) from None
        return self._answer(self._asked_for(TIMEOUT_SECONDS))

    def _ask(self) -> Callable[[], Described | None]:
        # Not on the consumer's own connection, where a question waits behind its long poll.
        asked = self._asked_for(1.0)
        return lambda: self._answer(asked) if asked.done() else None

    def _asked_for(self, seconds: float) -> Future[Any]:
        topics = TopicCollection([self.source.topic])
        described: dict[str, Future[Any]] = self._admin.describe_topics(
            topics, request_timeout=seconds
        )
        return described[self.source.topic]

    def _answer(self, asked: Future[Any]) -> Described:
        try:
            found = asked.result()
        except KafkaException as error:
            raise self._error(error.args[0].name()) from None
        return str(found.topic_id or ""), sorted(partition.id for partition in found.partitions)

    def _watermarks(self, partitions: list[int]) -> dict[int, tuple[int, int]]:
        # Through the other connection: on the consumer's a question waits behind its long poll.
        if not partitions:
            return {}
        topic, marks = self.source.topic, []
        try:
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
                asked = self._admin.list_offsets(
                    {TopicPartition(topic, partition): spec for partition in partitions},
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=TIMEOUT_SECONDS,
                )
                marks.append({one.partition: told.result().offset for one, told in asked.items()})
        except KafkaException as error:
            raise self._error(error.args[0].name()) from None
        return {partition: (marks[0][partition], marks[1][partition]) for partition in partitions}

    def _offsets_at(self, partitions: list[int], timestamp: int) -> dict[int, int]:
        wanted = [TopicPartition(self.source.topic, p, timestamp) for p in partitions]
        try:
            found = self._client.offsets_for_times(wanted, timeout=TIMEOUT_SECONDS)
        except KafkaException as error:
            raise self._error(error.args[0].name()) from None
        offsets = {one.partition: one.offset for one in found}
        ends = self._watermarks([partition for partition, offset in offsets.items() if offset < 0])
        return offsets | {partition: end for partition, (_, end) in ends.items()}

    def _go_to(self, offsets: Mapping[int, int]) -> None:
        topic = self.source.topic
        if known := [TopicPartition(topic, p) for p in offsets if p in self._next]:
            self._client.incremental_unassign(known)
        self._client.incremental_assign([TopicPartition(topic, p, at) for p, at in offsets.items()])
        self._next |= offsets

    def _is_at_end(self, partition: int) -> bool:
        return self._ends.get(partition) == self._next[partition]

    def _events(self, most: int, wait_seconds: float) -> list[Event]:
        # `consume` alone would wait its whole time when fewer than `most` have come.
        arrived: list[Any] = [self._client.poll(wait_seconds)]
        if arrived[0] is None:
            if self._complaint in _REFUSALS:
                raise self._error(self._complaint)
            return []
        if most > 1:
            arrived += self._client.consume(most - 1, 0)
        events = []
        for message in arrived:
            if message.error() is not None:
                self._read_error(message)
                continue
            kind, timestamp = message.timestamp()
            partition, offset = message.partition(), message.offset()
            self._next[partition] = offset + 1
            at = timestamp if kind else None
            events.append(
                Event(message.topic(), partition, offset, at, message.key(), message.value())
            )
        return events

    def _table(self, most: int, wait_seconds: float) -> pa.Table:
        return in_columns(self._events(most, wait_seconds))

    def _read_error(self, message: Any) -> None:
        """What stands in the queue in the place of an event."""
        name, partition = message.error().name(), message.partition()
        if name == "_PARTITION_EOF":
            # Beyond the last event there may be control records, or what compaction removed.
            self._next[partition] = max(self._next[partition], message.offset())
            self._ends[partition] = message.offset()
        elif name in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
            self._go_to(self._available({partition: self._next[partition]}))
        elif name in _UNREADABLE:
            raise self._error(name)
        else:
            self._hear(message.error())

    def _hear(self, error: KafkaError) -> None:
        """Remember the most telling of the complaints that come together."""
        if self._complaint in _LASTING or self._complaint == error.name():
            return
        self._complaint = error.name()
        self.trouble = _SAYS.get(self._complaint, f"librdkafka's error {self._complaint}")
        _log.warning("%s: %s", self.source.name, self.trouble)

    def _error(self, name: str) -> MendableError:
        source = self.source
        if name in _UNREADABLE:
            kind = MendableError if name == "TOPIC_AUTHORIZATION_FAILED" else NoTopicError
            return kind(
                source.name,
                expected="a topic of that name, which this user may read",
                arrived=_UNREADABLE[name],
                mend=f"check the topic's name and rights, or set {source.url_setting} to another broker",
            )
        return SourceUnavailableError(
            source.name,
            expected="a broker that answers",
            arrived=_SAYS.get(name, f"librdkafka's error {name}"),
            mend=f"start the broker or mend {source.url_setting} in .env, then run again",
        )


def client_options(source: EventTopic) -> dict[str, Any]:
    """What librdkafka is told, from the URL and the source.

    Raises:
        MendableError: the URL has another form, or an option is one of ours.
    """
    hosts, _, query = source.url.removeprefix("kafka://").partition("?")
    login, _, hosts = hosts.rpartition("@")
    if not source.url.startswith("kafka://") or not re.fullmatch(
        r"[^\s/@,]+:\d+(,[^\s/@,]+:\d+)*", hosts
    ):
        raise MendableError(
            f"setting {source.url_setting}",
            expected="kafka://host:port[,host:port] or log:///path/to/folder",
            arrived="a URL of another form",
            mend=f"change {source.url_setting} in the environment or in .env; see .env.example",
        )
    options: dict[str, Any] = {
        "client.id": "watershed",
        "group.id": "watershed",  # must be there; the group is never joined
        "log_level": 0,  # a warning can quote an option's value; errors come to us
        "queued.max.messages.kbytes": 32 << 10,
        "socket.nagle.disable": True,  # a small request goes out at once
    }
    if login:
        user, _, password = login.partition(":")
        options |= {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}
        options |= {"sasl.username": unquote(user), "sasl.password": unquote(password)}
    options |= dict(parse_qsl(query)) | dict(source.options)
    if ours := sorted(options.keys() & (_OURS.keys() | {"bootstrap.servers"})):
        raise MendableError(
            f"an option of {source.name}",
            expected="none of those on which it rests that every event comes once",
            arrived=", ".join(ours),
            mend=f"take it out of {source.url_setting} or of the source's options",
        )
    return options | {"bootstrap.servers": hosts}
