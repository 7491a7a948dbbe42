"""What a scorer's tests share: a stream on disk to put events in, to land, to score, and to read."""

from __future__ import annotations

import json
from pathlib import Path

from orchestration.connectors import event_log, event_stream
from orchestration.contracts.raw import contract_of
from orchestration.landing.land import RawTable, land
from orchestration.streaming.engine import run
from orchestration.streaming.publisher import LogPublisher
from orchestration.streaming.topics import topic_of
from orchestration.warehouse.connect import connect


def text_of(at):
    return at.isoformat().replace("+00:00", "Z")


class Stream:
    """A stream that the settings name, on disk."""

    system: str
    topics: tuple[str, ...]
    landed: tuple[str, ...]

    def __init__(self, settings):
        self.settings = settings
        connect(settings).close()
        self.folder = event_log.folder_of(settings.value_of(f"{self.system}_url"))
        for topic in self.topics:
            event_log.create_topic(self.folder, topic)

    def put(self, events):
        """Append (topic, event) pairs, topic by topic."""
        for topic in self.topics:
            values = [
                e if isinstance(e, bytes) else json.dumps(e).encode()
                for t, e in events
                if t == topic
            ]
            if values:
                with event_log.Producer(self.folder, topic) as producer:
                    producer.append_batch(values)

    def read(self, topic):
        with event_log_reader(self.folder, topic) as events:
            return [json.loads(event.value) for event in events]

    def end(self, topic):
        return event_log.watermarks(self.folder, topic, 0)[1]

    def land(self, *entities):
        for entity in entities or self.landed:
            topic = topic_of(self.settings, self.system, entity)
            table = RawTable(f"{self.system}__{entity}", contract_of(self.system, entity))
            land(self.settings, table, lambda at, topic=topic: event_stream.read(topic, at))

    def use_case(self, model=None):
        """A use case of this stream, with a model in force."""
        raise NotImplementedError

    def score(self, model=None):
        """Score until nothing is left; what was counted."""
        use_case = self.use_case(model)
        with Counting(use_case.topics[-1]) as publisher:
            update = use_case.update

            def heard(events, received):  # something came, also where nothing is published
                publisher.idle = 0
                return update(events, received)

            use_case.update = heard
            return run(use_case, publisher, stop=lambda: publisher.idle > 6, say=lambda line: None)


class Counting(LogPublisher):
    """Knows for how many looks nothing has come."""

    idle = 0

    def serve(self):
        self.idle += 1


class event_log_reader:
    """All events of a topic of one partition."""

    def __init__(self, folder: Path, topic: str):
        self.reader, self.topic = event_log.Reader(folder, topic, 0, 0), topic

    def __enter__(self):
        events = []
        while slices := self.reader.read():
            events += event_log.events_of(self.topic, slices)
        return events

    def __exit__(self, *_):
        self.reader.close()
