"""The engine of the online path: events in, what a use case makes of them out, on and on.

It knows no use case. It hands over whatever has come (so an event never waits for others), publishes
what is urgent first, tells how it goes, and goes on when the broker does. It stores no position: a
use case finds out at the start what was published and what landed, and begins behind it. So it can
be killed at any moment; what it publishes is at least once.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from orchestration.connectors.event_consumer import Consumer, open_consumer
from orchestration.errors import PassingError
from orchestration.streaming.status import Status

if TYPE_CHECKING:
    from orchestration.connectors.event_log import Event
    from orchestration.connectors.event_stream import EventTopic
    from orchestration.streaming.publisher import Publisher

MOST_EVENTS = 500
_WAIT_SECONDS = 0.05
_TURNS = 20
_LONGEST_SECONDS = 30.0


class Message(NamedTuple):
    """What is to be published; messages of equal keys keep their order."""

    topic: str
    key: bytes
    value: bytes


@dataclass
class Scored:
    """What a use case made of some events.

    Attributes:
        messages: to publish, the urgent ones first.
        scored: events that were scored.
        alerts: those of them that raised an alert.
        corrected: events whose earlier features a late one changed.
        set_aside: why events were left out, in a few words each, and how many.
    """

    messages: list[Message] = field(default_factory=list)
    scored: int = 0
    alerts: int = 0
    corrected: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)


class UseCase(Protocol):
    """What the engine runs."""

    @property
    def name(self) -> str:
        """For the live line and the metrics."""

    @property
    def topics(self) -> Sequence[EventTopic]:
        """What to read. The last is the one that is scored; those before it are read first."""

    def start(self, consumers: Sequence[Consumer]) -> Iterator[Scored]:
        """Rebuild the state, call `start` of every consumer (one per topic), say what was left undone."""

    def is_behind(self, topic: str) -> bool:
        """Whether a topic that is read first is to be read on before the scored one."""

    def update(self, events: Sequence[Event], received: float) -> Scored:
        """Take in events of one topic, which came at `received` (`time.time()`)."""


def run(
    use_case: UseCase,
    publisher: Publisher,
    *,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    metrics_port: int = 0,
) -> Status:
    """Follow the topics until `stop` says so.

    Args:
        use_case: what to do with events.
        publisher: where results go.
        stop: asked some twenty times a second.
        say: told the live line each second, and of troubles.
        metrics_port: Prometheus metrics on this port of 127.0.0.1; 0 is none.

    Returns:
        What was counted.

    Raises:
        MendableError: a topic cannot be read or written, and waiting would not help.
    """
    status = Status(use_case.name)
    with ExitStack() as stack:
        if metrics_port:
            stack.enter_context(status.served(metrics_port))
        engine = _Engine(use_case, publisher, status, stop, say)
        stack.callback(engine.close)
        if engine.start():
            stack.enter_context(_collected_by_hand())
            engine.follow()
    return status


@contextmanager
def _collected_by_hand() -> Iterator[None]:
    """No garbage collection comes by itself, in the middle of a score; `_Engine.follow` asks for it.

    The state is there to stay: no collection has to look at it again.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class _Engine:
    def __init__(
        self,
        use_case: UseCase,
        publisher: Publisher,
        status: Status,
        stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.use_case, self.publisher, self.status = use_case, publisher, status
        self.stop, self.say, self.told = stop, say, ""
        self.consumers: list[Consumer] = []

    def close(self) -> None:
        for consumer in self.consumers:
            consumer.close()

    def start(self) -> bool:
        """Whether it has begun; not if it was stopped while it waited for the broker."""
        wait = 1.0
        while not self.stop():
            self.close()
            self.consumers = [open_consumer(topic) for topic in self.use_case.topics]
            try:
                for scored in self.use_case.start(self.consumers):
                    self._publish(scored, time.time())
                return True
            except PassingError as error:
                wait = self._pause(error, wait)
        return False

    def follow(self) -> None:
        *first, last = range(len(self.consumers))
        while not self.stop():
            for number in first:
                for _ in range(_TURNS):
                    full = self._take(number, 0.0)
                    if not full or not self.use_case.is_behind(self.use_case.topics[number].topic):
                        break
            full = self._take(last, _WAIT_SECONDS)
            if self.status.is_due():
                # What is new since the last second: a look at all of it takes too long.
                gc.collect(1)
                # A consumer that gave less than it might has nothing more: only then ask for the end.
                lag = self._lag(self.consumers[last]) if full else 0
                line = self.status.line(lag, self.consumers[last].trouble)
                if line != self.told:  # an idle stream says so once
                    self.say(line)
                self.told = line

    def _take(self, number: int, wait_seconds: float) -> bool:
        """Read once and do what is to be done; whether there may be more at once."""
        try:
            events = self.consumers[number].poll(MOST_EVENTS, wait_seconds)
        except PassingError as error:
            self._come_back(number, error)
            return False
        if events:
            received = time.time()
            self._publish(self.use_case.update(events, received), received)
        else:
            self.publisher.serve()
        return len(events) == MOST_EVENTS

    def _publish(self, scored: Scored, received: float) -> None:
        if scored.messages:
            self.publisher.publish(scored.messages, self.stop)
        self.status.count(scored, time.time() - received)

    def _come_back(self, number: int, error: PassingError) -> None:
        """Open a consumer anew where it stood, once the broker takes it."""
        wait = self._pause(error, 1.0)
        position, topic = self.consumers[number].position, self.use_case.topics[number]
        while not self.stop():
            self.consumers[number].close()
            self.consumers[number] = open_consumer(topic)
            try:
                self.consumers[number].start(position)
                gc.collect()  # a consumer and its callbacks hold each other
                return
            except PassingError as again:
                wait = self._pause(again, wait)

    def _pause(self, error: PassingError, wait: float) -> float:
        """Wait, and how long to wait the next time."""
        self.say(f"{error}\n  trying again in {wait:g} s")
        until = time.monotonic() + wait
        while time.monotonic() < until and not self.stop():
            self.publisher.serve()
            time.sleep(0.05)
        return min(2 * wait, _LONGEST_SECONDS)

    def _lag(self, consumer: Consumer) -> int:
        position = consumer.position
        try:
            ends = consumer.watermarks().items()
        except PassingError:
            return -1
        return sum(end - int(position[str(partition)]) for partition, (_, end) in ends)
