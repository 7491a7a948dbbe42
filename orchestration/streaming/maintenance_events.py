"""The messages of predictive maintenance: what is read is typed and bounded."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


State = Literal["opened", "acknowledged", "closed"]
ClosedBy = Literal["maintenance", "recovered", ""]


class ReadingEvent(msgspec.Struct):
    """What a sensor read; its bounds are those of its contract in defs/raw/plant_stream."""

    machine_id: Name
    read_at: datetime
    sensor: Name
    value: Annotated[float, msgspec.Meta(ge=-1_000_000_000, le=1_000_000_000)]
    unit: str


class AcknowledgementEvent(msgspec.Struct):
    """Somebody takes care of a warning."""

    warning_id: str
    acknowledged_at: datetime


class SensorFeatures(msgspec.Struct):
    """The features of a sensor when an hour of its machine closed."""

    machine_id: str
    as_of_at: datetime
    sensor: str
    episode_number: int
    readings_count_6h: int
    value_avg_6h: float | None
    value_min_6h: float | None
    value_max_6h: float | None
    deviation_avg_6h: float | None
    deviation_std_6h: float | None
    deviation_slope_6h: float | None
    readings_count_24h: int
    value_avg_24h: float | None
    value_min_24h: float | None
    value_max_24h: float | None
    deviation_avg_24h: float | None
    deviation_std_24h: float | None
    deviation_slope_24h: float | None
    deviation_baseline: float | None
    deviation_distance_6h: float | None
    deviation_distance_24h: float | None
    hours_since_reading: float | None
    is_stuck: bool
    conflicting_count_24h: int
    late_count_24h: int
    rejected_count_24h: int


class MachineHealth(msgspec.Struct):
    """What was said of a machine when an hour of it closed."""

    machine_id: str
    machine_model: str
    as_of_at: datetime
    episode_number: int
    failure_probability: float
    remaining_hours: float | None
    remaining_hours_low: float | None
    remaining_hours_high: float | None
    reasons: str
    model_version: str
    readings_count_24h: int
    scored_at: datetime
    latency_ms: float
    reading_position: str


class Warned(msgspec.Struct):
    """A change of a warning; the same `warning_id` and `state` is the same change."""

    warning_id: str
    machine_id: str
    machine_model: str
    state: State
    changed_at: datetime
    as_of_at: datetime
    failure_probability: float
    remaining_hours: float | None
    reasons: str
    closed_by: ClosedBy
    model_version: str
