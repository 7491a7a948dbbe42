"""What the windows of sensors are made of: the plant as it is known, its readings, and what has landed of them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

HOUR = 3_600_000_000
DAY = 24 * HOUR
WINDOWS = (6, 24)
LATENESS = DAY
"""How much older than the machine's newest reading one may be and still be put in its place."""
REMEMBERED = 128
"""The last readings of a sensor, against which one is known to be a duplicate."""
MOST_VALUE = 1e9


class Spec(NamedTuple):
    """A sensor as its model's register has it; `step` (millionths) is 0 if it is no such setting."""

    unit: str
    least: float | None = None
    most: float | None = None
    step: int = 0


class Reference(NamedTuple):
    """What a model's sensor reads in a condition: millionths of its unit; used from `known_hour` on."""

    mean: int
    std: float | None
    known_hour: int


class Record(NamedTuple):
    """A machine as the register and the logs have it: times in microseconds, sorted.

    `starts` are those of its episodes, by number; the first is when it was commissioned. `works` are
    repairs and preventive maintenance.
    """

    machine_model: str
    starts: tuple[int, ...]
    works: tuple[int, ...] = ()
    recalibrations: tuple[int, ...] = ()
    failures: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plant:
    """What is known of the plant beside its readings.

    Attributes:
        machines: by machine_id.
        sensors: by model of machine, then by sensor.
        conversions: (unit, to unit) to factor and addend.
        references: by (machine_model, sensor, condition).
        baseline_hours: how many of an episode's first hours are its baseline.
    """

    machines: Mapping[str, Record] = field(default_factory=dict)
    sensors: Mapping[str, Mapping[str, Spec]] = field(default_factory=dict)
    conversions: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    references: Mapping[tuple[str, str, int], Reference] = field(default_factory=dict)
    baseline_hours: int = 24


class Reading(NamedTuple):
    """A reading; `at` in microseconds since 1970 UTC."""

    machine_id: str
    sensor: str
    at: int
    value: float
    unit: str


class HourSums(NamedTuple):
    """What landed of a sensor in an hour (since 1970): millionths of its unit; `last` in microseconds."""

    machine_id: str
    sensor: str
    hour: int
    readings: int
    total: int
    squares: int
    low: int
    high: int
    last: int


class LandedSensor(NamedTuple):
    """A sensor's newest time, and the times and marks (`mark_of`) of its last readings."""

    machine_id: str
    sensor: str
    newest: int
    times: array[int]
    marks: array[int]


class LandedMachine(NamedTuple):
    """A machine's newest time, its last hour, and the partition of its last reading."""

    machine_id: str
    newest: int
    hour: int
    partition: int
    is_open: bool


class Landed(NamedTuple):
    """What landed, as far as the features of the next hours need it.

    `flags` are (machine_id, sensor, hour, kind), a row for each; the kinds are those of a sensor's
    `flags`: conflicting, late, rejected. `clocks` are the last hours by partition.
    """

    hours: list[HourSums]
    flags: list[tuple[str, str, int, int]]
    sensors: list[LandedSensor]
    machines: list[LandedMachine]
    clocks: dict[int, int]


def mark_of(value: float, unit: str) -> int:
    """What tells a repeated reading from another one of the same time."""
    return hash((value, unit))
