"""The windows of feat_sensor__windows, kept up to date reading by reading; the SQL is the definition.

Everything is an integer until a feature is made of it: microseconds since 1970 UTC, hours since then,
and millionths of a sensor's unit. So what comes out is what the SQL says.

- A reading is added to its sensor's hour. When the first reading of a later hour comes, the machine's
  hour is closed: the hour's sums are put on running totals, and a window is two places in them. The
  hour of a machine that has fallen silent is closed when the readings that come beside it (in the same
  partition, where arrival is in order) are an hour past its end.
- A reading that comes late, up to `LATENESS`, is put into its hour; the totals are made anew when the
  next hour is closed. What was said of hours before stays.
- The hours that features can still need are kept: the last 24, and the first of the episode, which
  are the baseline.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor, sqrt
from operator import sub
from typing import NamedTuple

from orchestration.streaming.events import UnfitError
from orchestration.streaming.sensor_plant import (
    DAY,
    HOUR,
    LATENESS,
    MOST_VALUE,
    REMEMBERED,
    WINDOWS,
    HourSums,
    Landed,
    Plant,
    Reading,
    Record,
    Reference,
    Spec,
    mark_of,
)

MOST_SETTINGS = 6

_KEPT = WINDOWS[-1] + 1
_SLACK = 48
_NEVER = 1 << 62

_OF_WINDOW = (
    "readings_count",
    "value_avg",
    "value_min",
    "value_max",
    "deviation_avg",
    "deviation_std",
    "deviation_slope",
)
FEATURES = (
    *(f"{name}_{hours}h" for hours in WINDOWS for name in _OF_WINDOW),
    "deviation_baseline",
    *(f"deviation_distance_{hours}h" for hours in WINDOWS),
    "hours_since_reading",
    "is_stuck",
    "conflicting_count_24h",
    "late_count_24h",
    "rejected_count_24h",
)
"""What a sensor's row holds, as in feat_sensor__windows."""
HISTORY = (
    "age_hours",
    "episode_hours",
    "hours_since_maintenance",
    "hours_since_recalibration",
    "errors_count_24h",
    "failures_count",
    "silent_sensors_count",
    "readings_count_24h",
)
"""What a machine's row holds, as in feat_machine__history."""

Row = tuple[float | int | bool | None, ...]


class Hour(NamedTuple):
    """A machine's closed hour: the features of each sensor (`FEATURES`) and its own (`HISTORY`)."""

    machine_id: str
    machine_model: str
    as_of: int
    episode_number: int
    sensors: dict[str, Row]
    history: Row


class _Sensor:
    """A sensor of a machine.

    `hours` are [readings, sum, sum of squares, least, most] by hour, `flags` [conflicting, late,
    rejected]; `totals` are running sums over `ends`, the hours of the episode, and begin with nothing.
    """

    __slots__ = (
        "baseline", "ends", "flags", "heard", "highs", "hours", "is_stale", "last", "lows", "marks",
        "name", "newest", "spec", "times", "totals",
    )  # fmt: skip

    def __init__(self, name: str, spec: Spec) -> None:
        self.name, self.spec = name, spec
        self.newest = self.last = 0
        self.heard = _NEVER
        self.hours: dict[int, list[int]] = {}
        self.flags: dict[int, list[int]] = {}
        self.times, self.marks = array("q"), array("q")
        self.clear()

    def clear(self) -> None:
        """Begin the totals anew."""
        self.totals: list[tuple[int, ...]] = [(0,) * 8]
        self.ends, self.lows, self.highs = [-1], [0], [0]
        self.baseline, self.is_stale = (0, 0), True


class _Machine:
    """A machine: its sensors, and the hour that is open, or was the last one."""

    __slots__ = (
        "first", "hour", "is_open", "machine_id", "newest", "number", "partition", "record", "sensors",
        "specs", "spoken",
    )  # fmt: skip

    def __init__(self, machine_id: str, record: Record, specs: Mapping[str, Spec]) -> None:
        self.machine_id, self.record, self.specs = machine_id, record, specs
        self.sensors: dict[str, _Sensor] = {}
        self.spoken: set[int] = set()
        self.hour = self.number = self.partition = -1
        self.first = self.newest = 0
        self.is_open = False


class SensorWindows:
    """The state of all machines. Not for several threads.

    Attributes:
        newest: the time of the latest reading; 0 before the first.
    """

    def __init__(self, plant: Plant) -> None:
        self.newest = 0
        self._plant = plant
        self._machines: dict[str, _Machine] = {}
        self._clocks: dict[int, int] = {}
        self._settings = _settings_of(plant)

    def use(self, plant: Plant) -> None:
        """Go on with what is known of the plant by now."""
        self._plant, self._settings = plant, _settings_of(plant)
        for machine_id, machine in list(self._machines.items()):
            record = plant.machines.get(machine_id)
            specs = plant.sensors.get(record.machine_model) if record is not None else None
            if record is None or specs is None:
                del self._machines[machine_id]
                continue
            machine.record, machine.specs = record, specs
            for name, own in list(machine.sensors.items()):
                if name not in specs or specs[name].unit != own.spec.unit:
                    del machine.sensors[name]
                    continue
                own.spec, own.is_stale = specs[name], True

    def add(self, reading: Reading, partition: int = 0) -> list[Hour]:
        """Put a reading in its place.

        Args:
            reading: any; those far ahead of the others are for the caller to keep away.
            partition: where it came from.

        Returns:
            The hours that it closes.

        Raises:
            UnfitError: it is left out.
        """
        machine_id, sensor, at, value, unit = reading
        machine = self._machines.get(machine_id) or self._new(machine_id)
        own = machine.sensors.get(sensor) or self._new_sensor(machine, sensor)
        if at < machine.newest - LATENESS:
            raise UnfitError("more than 24 h late")
        hour, mark, flag = at // HOUR, mark_of(value, unit), -1
        if at <= own.newest:
            known = [own.marks[n] for n, then in enumerate(own.times) if then == at]
            if mark in known:
                raise UnfitError("duplicate")
            flag = 0 if known else 1 if at < own.newest else -1
        else:
            own.newest = at
        own.times.append(at)
        own.marks.append(mark)
        if len(own.times) >= 2 * REMEMBERED:
            del own.times[:REMEMBERED], own.marks[:REMEMBERED]
        if flag >= 0:
            own.flags.setdefault(hour, [0, 0, 0])[flag] += 1
            if flag == 0:
                raise UnfitError("conflicting reading")
        try:
            micros = self._micros(own.spec, value, unit)
        except UnfitError:
            own.flags.setdefault(hour, [0, 0, 0])[2] += 1
            raise
        closed = self._turn(machine, hour, partition)
        if hour < machine.hour or not machine.is_open:
            for one in machine.sensors.values() if own.spec.step else (own,):
                one.is_stale = True
        _put(own.hours, hour, micros)
        machine.spoken.add(hour)
        if machine.first <= hour < own.heard:
            own.heard = hour
        if at > own.last:
            own.last = at
        if at > machine.newest:
            machine.newest = at
            if at > self.newest:
                self.newest = at
        return closed

    def rebuild(self, landed: Landed) -> None:
        """Fill an empty state with what `add` would have made of the landed readings.

        Args:
            landed: of the machines and sensors of the plant.
        """
        for machine_id, sensor, newest, times, marks in landed.sensors:
            own = self._sensor(machine_id, sensor)
            own.newest, own.times, own.marks = newest, times, marks
        for machine_id, sensor, hour, kind in landed.flags:
            self._sensor(machine_id, sensor).flags.setdefault(hour, [0, 0, 0])[kind] += 1
        for machine_id, sensor, hour, *sums, last in landed.hours:
            own = self._sensor(machine_id, sensor)
            own.hours[hour] = sums
            own.last = max(own.last, last)
            self._machines[machine_id].spoken.add(hour)
        for machine_id, newest, hour, partition, is_open in landed.machines:
            machine = self._machines[machine_id]
            machine.newest, machine.hour = newest, hour
            machine.partition, machine.is_open = partition, is_open
            self.newest = max(self.newest, newest)
        self._clocks = dict(landed.clocks)

    def recall(self, landed: Iterable[HourSums]) -> None:
        """Put landed hours into the state that are no longer, or were never, in it."""
        found: dict[tuple[str, str], dict[int, list[int]]] = {}
        for machine_id, sensor, hour, *sums, last in landed:
            try:
                own = self._sensor(machine_id, sensor)
            except UnfitError:
                continue  # the register has moved on
            machine = self._machines[machine_id]
            if hour not in machine.spoken or hour < machine.hour - _KEPT:
                found.setdefault((machine_id, sensor), {})[hour] = sums
                own.newest, own.last = max(own.newest, last), max(own.last, last)
                machine.newest = max(machine.newest, last)
        for (machine_id, sensor), hours in found.items():
            machine = self._machines[machine_id]
            own = machine.sensors[sensor]
            own.hours = hours | own.hours
            machine.spoken |= hours.keys()
            if max(hours) > machine.hour:
                machine.hour, machine.is_open = max(hours), False
            machine.number = -1  # the episode's first hours are looked up again
            for one in machine.sensors.values():
                one.is_stale = True

    def _sensor(self, machine_id: str, sensor: str) -> _Sensor:
        machine = self._machines.get(machine_id) or self._new(machine_id)
        return machine.sensors.get(sensor) or self._new_sensor(machine, sensor)

    def _new(self, machine_id: str) -> _Machine:
        record = self._plant.machines.get(machine_id)
        if record is None:
            raise UnfitError("unknown machine")
        specs = self._plant.sensors.get(record.machine_model, {})
        machine = self._machines[machine_id] = _Machine(machine_id, record, specs)
        return machine

    def _new_sensor(self, machine: _Machine, sensor: str) -> _Sensor:
        spec = machine.specs.get(sensor)
        if spec is None:
            raise UnfitError("unknown sensor")
        own = machine.sensors[sensor] = _Sensor(sensor, spec)
        return own

    def _micros(self, spec: Spec, value: float, unit: str) -> int:
        if unit != spec.unit:
            conversion = self._plant.conversions.get((unit, spec.unit))
            if conversion is None:
                raise UnfitError("unknown unit")
            value = value * conversion[0] + conversion[1]
        if (
            not abs(value) <= MOST_VALUE
            or (spec.least is not None and value < spec.least)
            or (spec.most is not None and value > spec.most)
        ):
            raise UnfitError("impossible value")
        return floor(value * 1e6 + 0.5)

    def _turn(self, machine: _Machine, hour: int, partition: int) -> list[Hour]:
        """Close what a reading of this hour closes: its machine's hour, and those of silent machines."""
        closed: list[Hour] = []
        machine.partition = partition
        if hour > machine.hour:
            if machine.is_open:
                closed += self._close(machine)
            machine.hour, machine.is_open = hour, True
        if hour > self._clocks.get(partition, -1):
            self._clocks[partition] = hour
            for other in self._machines.values():
                if other.is_open and other.hour < hour - 1 and other.partition == partition:
                    closed += self._close(other)
        return closed

    def _close(self, machine: _Machine) -> Iterator[Hour]:
        machine.is_open = False
        hour, record = machine.hour, machine.record
        number = bisect_right(record.starts, hour * HOUR) - 1
        if number < 0:
            return  # not in service yet
        first = -(-record.starts[number] // HOUR)
        if number != machine.number or first != machine.first:
            machine.number, machine.first = number, first
            for own in machine.sensors.values():
                own.is_stale = True
                own.heard = min((h for h in own.hours if h >= first), default=_NEVER)
        condition = self._condition(machine, hour)
        rows = {}
        for own in machine.sensors.values():
            if own.heard == _NEVER:
                continue
            if own.is_stale:
                self._sum_up(machine, own)
            else:
                self._extend(machine, own, hour, condition)
            key = (record.machine_model, own.name, condition)
            rows[own.name] = _row(machine, own, self._reference(key, hour))
        self._forget(machine)
        as_of = (hour + 1) * HOUR
        yield Hour(
            machine.machine_id, record.machine_model, as_of, number, rows,
            _history(machine, as_of, rows.values()),
        )  # fmt: skip

    def _condition(self, machine: _Machine, hour: int) -> int:
        """The settings' levels in that hour as one number; 0 if the model has none."""
        condition = 0
        for sensor, place in self._settings.get(machine.record.machine_model, ()):
            own = machine.sensors.get(sensor)
            there = own.hours.get(hour) if own is not None else None
            if own is not None and there is not None:
                count, total, step = there[0], there[1], own.spec.step
                level = (2 * total + count * step) // (2 * count * step)
                condition += (500 + max(-499, min(499, level))) * place
        return condition

    def _reference(self, key: tuple[str, str, int], hour: int) -> Reference | None:
        found = self._plant.references.get(key)
        return found if found is not None and found.known_hour <= hour else None

    def _sum_up(self, machine: _Machine, own: _Sensor) -> None:
        """Make a sensor's totals anew from its hours."""
        own.clear()
        own.is_stale = False
        for hour in sorted(h for h in own.hours if machine.first <= h <= machine.hour):
            self._extend(machine, own, hour, self._condition(machine, hour))

    def _extend(self, machine: _Machine, own: _Sensor, hour: int, condition: int) -> None:
        """Put an hour on a sensor's totals."""
        there = own.hours.get(hour)
        if there is None:
            return
        count, total, squares, low, high = there
        found = self._reference((machine.record.machine_model, own.name, condition), hour)
        known = off = off_squares = 0
        if found is not None:
            mean = found.mean
            known, off = count, total - count * mean
            off_squares = squares - 2 * mean * total + count * mean * mean
            if hour < machine.first + self._plant.baseline_hours:
                own.baseline = own.baseline[0] + known, own.baseline[1] + off
        a, b, c, d, e, f, g, h = own.totals[-1]
        by_hour = known * hour
        own.totals.append(
            (
                a + count, b + total, c + known, d + off, e + off_squares,
                f + by_hour, g + by_hour * hour, h + off * hour,
            )
        )  # fmt: skip
        own.ends.append(hour)
        own.lows.append(low)
        own.highs.append(high)
        if len(own.ends) > _KEPT + _SLACK:
            gone = bisect_right(own.ends, hour - WINDOWS[-1]) - 1
            del own.ends[:gone], own.totals[:gone], own.lows[:gone], own.highs[:gone]

    def _forget(self, machine: _Machine) -> None:
        """Let go of hours that no feature needs any more."""
        baseline = range(machine.first, machine.first + self._plant.baseline_hours)
        oldest = machine.hour - _KEPT
        most = _KEPT + _SLACK + len(baseline)
        if len(machine.spoken) <= most:
            return
        machine.spoken = {h for h in machine.spoken if h >= oldest or h in baseline}
        for own in machine.sensors.values():
            own.hours = {h: v for h, v in own.hours.items() if h >= oldest or h in baseline}
            own.flags = {h: v for h, v in own.flags.items() if h >= oldest}


def _settings_of(plant: Plant) -> dict[str, list[tuple[str, int]]]:
    """Per model the settings that make the condition, and the place of each."""
    return {
        model: [
            (sensor, 1000**rank)
            for rank, sensor in enumerate(sorted(s for s, spec in specs.items() if spec.step))
            if rank < MOST_SETTINGS
        ]
        for model, specs in plant.sensors.items()
    }


def _put(hours: dict[int, list[int]], hour: int, micros: int) -> None:
    there = hours.get(hour)
    if there is None:
        hours[hour] = [1, micros, micros * micros, micros, micros]
        return
    there[0] += 1
    there[1] += micros
    there[2] += micros * micros
    if micros < there[3]:
        there[3] = micros
    elif micros > there[4]:
        there[4] = micros


def _row(machine: _Machine, own: _Sensor, reference: Reference | None) -> Row:
    """The features of a sensor at the end of its machine's hour."""
    hour, ends = machine.hour, own.ends
    row: list[float | int | None] = []
    averages: list[float | None] = []
    for hours in WINDOWS:
        begin = bisect_right(ends, hour - hours)
        count, total, known, off, off_squares, x, xx, x_off = map(
            sub, own.totals[-1], own.totals[begin - 1]
        )
        average = std = slope = None
        if known:
            average = float(off) / known / 1e6
            near = floor(float(off) / known)
            if known > 1:
                rest = float(off - known * near)
                spread = float(off_squares - 2 * near * off + known * near * near)
                std = sqrt(max(spread - rest * rest / known, 0.0) / (known - 1)) / 1e6
            across = known * xx - x * x
            if across:
                slope = float(known * x_off - x * off) / float(across) / 1e6
        averages.append(average)
        if count:
            low, high = min(own.lows[begin:]), max(own.highs[begin:])
            row += (count, float(total) / count / 1e6, low / 1e6, high / 1e6, average, std, slope)
            is_stuck = count >= 6 and low == high
        else:
            row += (0, None, None, None, None, None, None)
            is_stuck = False
    known, off = own.baseline
    baseline = float(off) / known / 1e6 if known else None
    row.append(baseline)
    scale = reference.std / 1e6 if reference is not None and reference.std else None
    row += (
        None if average is None or baseline is None or scale is None else (average - baseline) / scale
        for average in averages
    )  # fmt: skip
    flags = [0, 0, 0]
    for then, counts in own.flags.items() if own.flags else ():
        if max(hour - 24, own.heard - 1) < then <= hour and then in machine.spoken:
            flags = [a + b for a, b in zip(flags, counts, strict=True)]
    return (*row, ((hour + 1) * HOUR - own.last) / 3.6e9, is_stuck, *flags)


def _history(machine: _Machine, as_of: int, rows: Iterable[Row]) -> Row:
    """The features of a machine at the end of its hour."""
    record = machine.record

    def since(times: Sequence[int]) -> float | None:
        before = bisect_left(times, as_of)
        return (as_of - times[before - 1]) / 3.6e9 if before else None

    six, day = FEATURES.index("readings_count_6h"), FEATURES.index("readings_count_24h")
    counts = [(row[six], row[day]) for row in rows]
    age = (as_of - record.starts[0]) / 3.6e9
    worked = since(record.works)
    return (
        age,
        (as_of - record.starts[machine.number]) / 3.6e9,
        age if worked is None else min(age, worked),
        since(record.recalibrations),
        bisect_left(record.errors, as_of) - bisect_left(record.errors, as_of - DAY),
        bisect_left(record.failures, as_of),
        len(machine.specs) - sum(1 for count, _ in counts if count),
        sum(count or 0 for _, count in counts),
    )
