"""Predictive maintenance on the stream: a machine's features and its score when an hour of it closes, and warnings.

Where it begins: before the readings that closed the last hours of which something was said, far
enough for what may not have been confirmed, with the state that the landed readings before them make.
Hours that were said are not said again. So nothing is lost when it is killed, or when landing was
ahead. A first start begins a day before the last landed reading.

A reading that comes late changes the features of later hours; what was published stays.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import msgspec

from orchestration.connectors.event_consumer import TOPIC_ID, Consumer
from orchestration.connectors.event_stream import EventTopic
from orchestration.errors import MendableError
from orchestration.learning.warning_states import Policy, Standing, reset, step
from orchestration.settings import Settings
from orchestration.streaming import maintenance_state
from orchestration.streaming.champion import Champions
from orchestration.streaming.engine import Message, Scored
from orchestration.streaming.events import UnfitError, at_time, decoder_of, microseconds
from orchestration.streaming.maintenance_events import (
    AcknowledgementEvent,
    ClosedBy,
    MachineHealth,
    ReadingEvent,
    SensorFeatures,
    State,
    Warned,
)
from orchestration.streaming.maintenance_state import KnownPlant, Said, Snapshot
from orchestration.streaming.publisher import UNCONFIRMED, open_publisher
from orchestration.streaming.sensor_plant import DAY, HourSums, Plant, Reading
from orchestration.streaming.sensor_windows import FEATURES, HISTORY, Hour, SensorWindows
from orchestration.streaming.topics import topic_of, unlanded

if TYPE_CHECKING:
    import numpy as np

    from orchestration.connectors.event_log import Event

TOPICS = ("readings", "sensor_features", "machine_health", "warnings", "acknowledgements")
_AGREEING, _HELD = 3, 10_000
"""Readings that are more than a day ahead have a wrong clock; when so many machines agree within a day,
among the last held, time has moved on, as after a silence."""
_AGAIN = UNCONFIRMED // 2
"""The last hours that may not have been confirmed: each makes at least two messages."""
_SENSOR, _MACHINE = (
    {name: n for n, name in enumerate(FEATURES)},
    {name: n for n, name in enumerate(HISTORY)},
)


_Told = TypeVar("_Told", bound=msgspec.Struct)


class Model(Protocol):
    """What scores: learning's `Model`, or its `BaselineRule`."""

    @property
    def version(self) -> str:
        """Its name in what it says."""

    @property
    def warning_threshold(self) -> float:
        """Probabilities from here on call for a warning."""

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """(sensor, feature) of each column; the machine's own features have the sensor ""."""

    def score(self, matrix: np.ndarray) -> Any:
        """`Health`: four arrays, one value per row of the inputs."""

    def reasons(self, matrix: np.ndarray, most: int = 3) -> list[list[str]]:
        """Per row what raised the probability, in words."""


class Known(Protocol):
    """What is known of the plant: `KnownPlant`, which is told there."""

    plant: Plant
    policy: Policy | None
    news: deque[tuple[Plant, list[HourSums]]]


class _Closed(NamedTuple):
    """An hour to be said, and the reading that closed it."""

    hour: Hour
    position: str


def stream_topic(settings: Settings, topic: str) -> EventTopic:
    """A topic of the plant's stream."""
    return topic_of(settings, maintenance_state.STREAM, topic)


def champions_of(
    settings: Settings, plant: KnownPlant, say: Callable[[str], None]
) -> Champions[Model]:
    """The models in force, one per model of machine, for as long as its `with` runs."""
    from orchestration.learning.machine_health import Model as Trained
    from orchestration.learning.machine_health import baseline_rule

    return Champions[Model](
        settings,
        "predictive_maintenance",
        Trained.from_json,
        lambda model: baseline_rule(sorted(plant.plant.sensors.get(model, ()))),
        say,
        kind="machine_model",
        kinds=lambda: {record.machine_model for record in plant.plant.machines.values()},
    )


def acknowledge(settings: Settings, warning_id: str) -> None:
    """Tell the scorer that somebody takes care of a warning.

    Raises:
        MendableError: no such warning that is open has landed, or the topic takes no messages.
    """
    with maintenance_state.snapshot(settings) as landed:
        closed = {one.warning_id for one in landed.warnings() if one.state == "closed"}
        opened = {one.warning_id for one in landed.warnings()} - closed
    if warning_id not in opened:
        raise MendableError(
            "the warning to acknowledge",
            expected=f"one that is open: {', '.join(sorted(opened)[:10]) or 'none is'}",
            arrived="another" if warning_id else "none",
            mend='look: make sql q="from raw.plant_stream__warnings order by changed_at desc"',
        )
    taken = AcknowledgementEvent(warning_id, datetime.now(UTC))
    message = Message("acknowledgements", warning_id.encode(), msgspec.json.encode(taken))
    with open_publisher(stream_topic(settings, "acknowledgements")) as publisher:
        publisher.create({"acknowledgements": 1})
        publisher.publish([message], stop=lambda: False)


class MaintenanceScoring:
    """The use case. Not for several threads.

    Args:
        settings: which warehouse and stream.
        plant: what is known of the plant.
        champion: the model in force for a model of machine; asked once per batch.
    """

    name = "machines"

    def __init__(self, settings: Settings, plant: Known, champion: Callable[[str], Model]) -> None:
        self._settings, self._plant, self._champion = settings, plant, champion
        self.topics = (
            stream_topic(settings, "acknowledgements"),
            stream_topic(settings, "readings"),
        )
        self._decode = decoder_of(ReadingEvent)
        self._decode_acknowledgement = decoder_of(AcknowledgementEvent)
        self._encode = msgspec.json.Encoder().encode
        self._begin()

    def _begin(self) -> None:
        self._plant.news.clear()
        self.windows = SensorWindows(self._plant.plant)
        self._ahead: deque[tuple[Reading, int, str]] = deque(maxlen=_HELD)
        self._ahead_at: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._recent: set[tuple[str, int]] = set()
        self._features: set[tuple[str, int, str]] = set()
        self._standings: dict[str, Standing] = {}
        self._episodes: dict[str, int] = {}
        self._open: dict[str, Warned] = {}
        """By machine the message that opened its warning, or acknowledged it."""
        self._plans: dict[str, tuple[Model, list[tuple[str, list[tuple[int, int]]]]]] = {}

    def is_behind(self, topic: str) -> bool:
        """Acknowledgements wait for nothing and nothing waits for them."""
        return False

    def start(self, consumers: Sequence[Consumer]) -> Iterator[Scored]:
        """Rebuild the state and find the place to begin."""
        self._begin()
        self._warm_up()
        acknowledgements, readings = consumers
        with maintenance_state.snapshot(self._settings) as landed:
            healths = self._tail(landed, "machine_health", MachineHealth)
            features = self._tail(landed, "sensor_features", SensorFeatures)
            warnings = landed.warnings() + self._tail(landed, "warnings", Warned)
            said = landed.said(_AGAIN) + [_said(one) for one in healths]
            position, parts = landed.position("readings"), {one.part for one in said}
            landed_parts = {int(part) for part in position if part != TOPIC_ID}
            starts = {} if landed_parts <= parts else landed.last_day()
            for part in parts:
                last = sorted((one for one in said if one.part == part), key=lambda s: -s.place)
                starts[part] = last[:_AGAIN][-1].place
                self._recent |= {(one.machine_id, one.as_of) for one in last[:_AGAIN]}
            known = {
                str(part): min(place, int(position.get(str(part), 0)))
                for part, place in starts.items()
            }
            topic_id = {TOPIC_ID: position[TOPIC_ID]} if TOPIC_ID in position else {}
            readings.start(known | topic_id if position else {})
            begins = {int(p): at for p, at in readings.position.items() if p != TOPIC_ID}
            before = begins if readings.first_time else None
            self.windows.rebuild(landed.readings(before, self._plant.plant))
            since = min((as_of for _, as_of in self._recent), default=0)
            self._features = landed.features(since) if self._recent else set()
            self._features |= {
                (one.machine_id, microseconds(one.as_of_at), one.sensor) for one in features
            }
        scored = self._recall(said, warnings)
        acknowledgements.start({})
        ends = {part: end for part, (_, end) in acknowledgements.watermarks().items()}
        while not acknowledgements.reached(ends):
            scored.messages += self._acknowledge(acknowledgements.poll(500, 0.2), Counter())
        yield scored

    def _warm_up(self) -> None:
        """Let every model say something once: the first time takes as long as a thousand later ones."""
        import numpy as np

        for machine_model in self._plant.plant.sensors:
            model = self._champion(machine_model)
            nothing = np.full((1, len(model.inputs)), np.nan)
            model.score(nothing)
            model.reasons(nothing)

    def _tail(self, landed: Snapshot, topic: str, kind: type[_Told]) -> list[_Told]:
        """What was published on a topic and has not landed."""
        return unlanded(stream_topic(self._settings, topic), landed.position(topic), kind)

    def update(self, events: Sequence[Event], received: float) -> Scored:
        """Take in readings and say what they close, or acknowledgements."""
        scored = Scored()
        if events[0].topic == self.topics[0].topic:
            scored.messages += self._acknowledge(events, scored.set_aside)
            return scored
        while self._plant.news:
            plant, landed = self._plant.news.popleft()
            self.windows.use(plant)
            self.windows.recall(landed)
        closed: list[_Closed] = []
        aside, add = scored.set_aside, self.windows.add
        for event in events:
            try:
                came = self._decode(event.value)
                reading = Reading(
                    came.machine_id, came.sensor, microseconds(came.read_at), came.value, came.unit
                )
                if reading.at > self.windows.newest + DAY and self.windows.newest:
                    self._hold(reading, event, closed, aside)
                    continue
                hours = add(reading, event.partition)
            except UnfitError as reason:
                aside[str(reason)] += 1
                continue
            if hours:
                place = f"{event.topic}/{event.partition}/{event.offset}"
                closed += [_Closed(hour, place) for hour in hours]
        scored.scored = len(events) - aside.total()
        self._say(closed, received, scored)
        return scored

    def _hold(
        self, reading: Reading, event: Event, closed: list[_Closed], aside: Counter[str]
    ) -> None:
        """Keep a reading that is far ahead until enough machines agree."""
        if reading.machine_id not in self._plant.plant.machines:
            raise UnfitError("unknown machine")
        place = f"{event.topic}/{event.partition}/{event.offset}"
        aside["clock in the future"] += 1
        self._ahead.append((reading, event.partition, place))
        self._ahead_at[reading.machine_id] = reading.at
        near = sum(1 for at in self._ahead_at.values() if abs(at - reading.at) <= DAY)
        if near < min(_AGREEING, len(self._plant.plant.machines)):
            return
        waiting, self._ahead = self._ahead, deque(maxlen=_HELD)
        held: list[tuple[Reading, int, str]] = []
        for one in waiting:
            (held if abs(one[0].at - reading.at) <= DAY else self._ahead).append(one)
        self._ahead_at = {one.machine_id: one.at for one, _, _ in self._ahead}
        aside["clock in the future"] -= len(held)
        for came, part, where in held:
            try:
                closed += [_Closed(hour, where) for hour in self.windows.add(came, part)]
            except UnfitError as reason:
                aside[str(reason)] += 1

    def _say(self, closed: Sequence[_Closed], received: float, scored: Scored) -> None:
        """Publish the features of hours, score them, and take the steps of warnings."""
        fresh: list[_Closed] = []
        features: list[Message] = []
        encode = self._encode
        for one in closed:
            machine_id, _, as_of, number, sensors, _ = one.hour
            is_said = as_of <= self._last.get(machine_id, -1)
            if is_said and (machine_id, as_of) not in self._recent:
                continue
            key, when = machine_id.encode(), at_time(as_of)
            for sensor, row in sensors.items():
                if not self._features or (machine_id, as_of, sensor) not in self._features:
                    make: Callable[..., SensorFeatures] = SensorFeatures
                    told = make(machine_id, when, sensor, number, *row)
                    features.append(Message("sensor_features", key, encode(told)))
            if not is_said:
                self._last[machine_id] = as_of
                fresh.append(one)
        if not fresh:
            scored.messages += features
            return
        now = datetime.now(UTC)
        latency = max(0.0, 1000 * (now.timestamp() - received))
        changes: list[Message] = []
        healths: list[Message] = []
        for (hour, position), health, model in self._scored(fresh):
            machine_id, machine_model, as_of, number, _, history = hour
            probability, remaining, low, high, reasons = health
            when, version = at_time(as_of), model.version
            said = MachineHealth(
                machine_id, machine_model, when, number, probability, remaining, low, high, reasons,
                version, int(history[_MACHINE["readings_count_24h"]] or 0), now, latency, position,
            )  # fmt: skip
            healths.append(Message("machine_health", machine_id.encode(), encode(said)))
            changes += self._stepped(
                Said(machine_id, as_of, number, probability, remaining, reasons, version, 0, 0),
                machine_model, model.warning_threshold, scored,
            )  # fmt: skip
        scored.messages += changes + healths + features

    def _scored(
        self, closed: Sequence[_Closed]
    ) -> Iterator[
        tuple[_Closed, tuple[float, float | None, float | None, float | None, str], Model]
    ]:
        """Hours in their order with what their models say; the reasons only where it is much."""
        import numpy as np

        by_model: dict[str, list[int]] = {}
        for number, one in enumerate(closed):
            by_model.setdefault(one.hour.machine_model, []).append(number)
        found: list[Any] = [None] * len(closed)
        for machine_model, numbers in by_model.items():
            model = self._champion(machine_model)
            plan = self._plan(machine_model, model)
            matrix = np.array([_inputs(closed[n].hour, plan, model) for n in numbers], np.float64)
            columns = [column.tolist() for column in model.score(matrix)]
            high = [n for n, p in enumerate(columns[0]) if p >= model.warning_threshold]
            told = model.reasons(matrix[high]) if high else []
            reasons = {n: "; ".join(texts) for n, texts in zip(high, told, strict=True)}
            for place, (number, chance, *lives) in enumerate(zip(numbers, *columns, strict=True)):
                known = [None if isnan(hours) else hours for hours in lives]
                found[number] = (closed[number], (chance, *known, reasons.get(place, "")), model)
        yield from found

    def _plan(self, machine_model: str, model: Model) -> list[tuple[str, list[tuple[int, int]]]]:
        """Per sensor of a model's inputs the (column, number of the feature) pairs."""
        known = self._plans.get(machine_model)
        if known is None or known[0] is not model:
            by_sensor: dict[str, list[tuple[int, int]]] = {}
            for column, (sensor, feature) in enumerate(model.inputs):
                number = _SENSOR[feature] if sensor else _MACHINE[feature]
                by_sensor.setdefault(sensor, []).append((column, number))
            known = self._plans[machine_model] = (model, list(by_sensor.items()))
        return known[1]

    def _stepped(
        self, said: Said, machine_model: str, threshold: float, scored: Scored
    ) -> list[Message]:
        """Take one score into account; what becomes of the machine's warning."""
        policy = self._plant.policy
        if policy is None:
            return []
        machine_id, changes = said.machine_id, []
        standing = self._standings.get(machine_id, Standing())
        if self._episodes.get(machine_id, said.episode_number) != said.episode_number:
            standing, change = reset(standing)
            if change:
                changes.append(self._closed(said, "maintenance"))
        self._episodes[machine_id] = said.episode_number
        standing, stepped = step(
            standing, machine_id, at_time(said.as_of), said.failure_probability, threshold, policy
        )
        self._standings[machine_id] = standing
        if stepped == "opened":
            opened = self._warned(standing.warning_id, machine_model, said, "opened")
            self._open[machine_id] = opened
            changes.append(self._message(opened))
            scored.alerts += 1
        elif stepped == "closed":
            changes.append(self._closed(said, "recovered"))
        return changes

    def _closed(self, said: Said, closed_by: ClosedBy) -> Message:
        opened = self._open.pop(said.machine_id)
        ended = self._warned(opened.warning_id, opened.machine_model, said, "closed", closed_by)
        return self._message(ended)

    def _warned(
        self, warning_id: str, model: str, said: Said, state: State, closed_by: ClosedBy = ""
    ) -> Warned:
        return Warned(
            warning_id, said.machine_id, model, state, datetime.now(UTC), at_time(said.as_of),
            said.failure_probability, said.remaining_hours, said.reasons, closed_by,
            said.model_version,
        )  # fmt: skip

    def _message(self, warned: Warned) -> Message:
        return Message("warnings", warned.machine_id.encode(), self._encode(warned))

    def _acknowledge(self, events: Sequence[Event], aside: Counter[str]) -> list[Message]:
        """Mark open warnings as acknowledged."""
        messages = []
        by_id = {opened.warning_id: machine_id for machine_id, opened in self._open.items()}
        for event in events:
            try:
                came = self._decode_acknowledgement(event.value)
                machine_id = by_id.get(came.warning_id, "")
                if not machine_id:
                    raise UnfitError("no such open warning")
            except UnfitError as reason:
                aside[f"acknowledgement: {reason}"] += 1
                continue
            opened = self._open[machine_id]
            if opened.state == "opened":
                taken = msgspec.structs.replace(
                    opened, state="acknowledged", changed_at=came.acknowledged_at
                )
                self._open[machine_id] = taken
                messages.append(self._message(taken))
        return messages

    def _recall(self, said: Sequence[Said], warnings: Sequence[Warned]) -> Scored:
        """Know again where every machine stands; say what became of a warning and was not confirmed."""
        scored = Scored()
        closed: dict[str, Warned] = {}
        for one in sorted(warnings, key=lambda w: (w.as_of_at, w.state != "opened")):
            if one.state == "closed":
                closed[one.machine_id] = one
                self._open.pop(one.machine_id, None)
            else:
                self._open[one.machine_id] = one
        by_machine: dict[str, dict[int, Said]] = {}
        for told in said:
            by_machine.setdefault(told.machine_id, {})[told.as_of] = told
        for machine_id, hours in by_machine.items():
            self._last[machine_id] = max(hours)
            record = self._plant.plant.machines.get(machine_id)
            if record is None:
                continue
            since = 0
            if opened := self._open.get(machine_id):
                since = microseconds(opened.as_of_at)
                self._standings[machine_id] = Standing(warning_id=opened.warning_id)
                if since in hours:
                    self._episodes[machine_id] = hours[since].episode_number
            elif machine_id in closed:
                since = microseconds(closed[machine_id].as_of_at)
            model = self._champion(record.machine_model)
            for as_of in sorted(hours):
                told = hours[as_of]
                if as_of > since and told.model_version == model.version:
                    scored.messages += self._stepped(
                        told, record.machine_model, model.warning_threshold, scored
                    )
        return scored


def _said(told: MachineHealth) -> Said:
    part, place = map(int, told.reading_position.split("/")[-2:])
    return Said(
        told.machine_id, microseconds(told.as_of_at), told.episode_number, told.failure_probability,
        told.remaining_hours, told.reasons, told.model_version, part, place,
    )  # fmt: skip


def _inputs(
    hour: Hour, plan: Sequence[tuple[str, list[tuple[int, int]]]], model: Model
) -> list[float | None]:
    """A row of a model's inputs; None is unknown."""
    inputs: list[float | None] = [None] * len(model.inputs)
    for sensor, pairs in plan:
        row = hour.sensors.get(sensor) if sensor else hour.history
        if row is not None:
            for column, number in pairs:
                inputs[column] = row[number]
    return inputs
