"""The features of sensors: SQL against their definition, reading by reading, in generated plants."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from datetime import datetime, timedelta
from fractions import Fraction
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2025, 3, 29, 20)  # over the hour that a clock with daylight saving skips
BASELINE_HOURS, REFERENCE_MACHINE_HOURS = 5, 4
WINDOWS = (6, 24)
CONVERSIONS = {
    ("degF", "degC"): (0.5555555555555556, -17.77777777777778),
    ("K", "degC"): (1.0, -273.15),
}
MOST = 1e9

MODELS = (
    "staging.stg_plant_db__machines",
    "staging.stg_plant_db__sensors",
    "staging.stg_plant_db__maintenance",
    "staging.stg_plant_db__failures",
    "staging.stg_plant_db__machine_errors",
    "staging.stg_plant_stream__readings",
    "intermediate.int_readings__hourly",
    "intermediate.int_machine_episodes__started",
    "intermediate.int_machine_hours__conditioned",
    "intermediate.int_sensor_references__fixed",
    "features.feat_sensor__windows",
)
"""What stands between raw readings and their features, in the order in which it is built."""


class Sensor(NamedTuple):
    """A line of the register."""

    machine_model: str
    sensor: str
    unit: str
    min_value: float | None
    max_value: float | None
    is_setting: bool
    setting_step: float | None


class Reading(NamedTuple):
    """An event of the stream."""

    machine_id: str
    read_at: datetime
    sensor: str
    value: float
    unit: str


class Plant(NamedTuple):
    """A plant; readings in the order in which they arrive."""

    machines: dict[str, tuple[str, datetime]]
    sensors: list[Sensor]
    works: list[tuple[str, datetime, str]]
    failures: list[tuple[str, datetime]]
    readings: list[Reading]


SENSORS = [
    Sensor("press", "load_pct", "%", 0, 100, True, 10.0),
    Sensor("press", "room", "degC", None, None, True, None),
    Sensor("press", "speed", "rpm", None, None, True, 0.5),
    Sensor("press", "temperature_c", "degC", -40, 200, False, None),
    Sensor("pump", "temperature_c", "degC", None, 150, False, None),
    Sensor("pump", "vibration", "mm/s", 0, None, False, None),
]
MACHINES = {
    "a": ("press", START - 100 * DAY),
    "b": ("press", START + timedelta(minutes=30)),
    "c": ("pump", START),
    "d": ("pump", START + 3 * HOUR),
}


@pytest.fixture(scope="module")
def models(compiled) -> dict[str, str]:
    """`schema.table` of each of these models to its SQL."""
    return {model: compiled[model] for model in MODELS}


def table(fields: dict[str, pa.DataType], rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(fields)
    return pa.table(
        {
            name: pa.array(list(values), kind)
            for (name, kind), values in zip(fields.items(), columns, strict=True)
        }
    )


TEXT, NUMBER, MOMENT = pa.string(), pa.float64(), pa.timestamp("us")


def features(models: dict[str, str], plant: Plant) -> dict[tuple, dict]:
    """(machine_id, as_of_at, sensor) to what the models make of the plant."""
    raw = {
        "plant_db__machines": table(
            {"machine_id": TEXT, "machine_model": TEXT, "commissioned_at": MOMENT},
            [(machine, *known) for machine, known in plant.machines.items()],
        ),
        "plant_db__sensors": table(
            {
                **dict.fromkeys(("machine_model", "sensor", "unit"), TEXT),
                **dict.fromkeys(("min_value", "max_value"), NUMBER),
                "is_setting": pa.bool_(),
                "setting_step": NUMBER,
            },
            plant.sensors,
        ),
        "plant_db__maintenance": table(
            {
                "maintenance_id": pa.int64(),
                "machine_id": TEXT,
                "performed_at": MOMENT,
                "kind": TEXT,
                "component": TEXT,
            },
            [(number, *work, None) for number, work in enumerate(plant.works)],
        ),
        "plant_db__failures": table(
            {"failure_id": pa.int64(), "machine_id": TEXT, "failed_at": MOMENT, "component": TEXT},
            [(number, *failure, None) for number, failure in enumerate(plant.failures)],
        ),
        "plant_db__machine_errors": table(
            {"error_id": pa.int64(), "machine_id": TEXT, "occurred_at": MOMENT, "code": TEXT}, []
        ),
        "plant_stream__readings": table(
            {"machine_id": TEXT, "read_at": MOMENT, "sensor": TEXT, "value": NUMBER, "unit": TEXT},
            plant.readings,
        ).append_column("arrival", pa.array(range(len(plant.readings)), pa.int64())),
    }
    with duckdb.connect(":memory:") as connection:
        connection.execute("attach ':memory:' as lake; use lake; set threads = 2")
        for schema in ("raw", "seeds", "staging", "intermediate", "features"):
            connection.execute(f"create schema {schema}")
        for name, rows in raw.items():
            connection.register("rows", rows)
            position = "arrival" if name == "plant_stream__readings" else "0"
            connection.execute(
                f"create table raw.{name} as select *, timestamp '2026-01-01' as _loaded_at,"
                f" 'readings/0/' || {position} as _source_position from rows"
            )
        connection.execute(
            f"create table seeds.maintenance_policy as select {BASELINE_HOURS}::bigint as baseline_hours,"
            f" {REFERENCE_MACHINE_HOURS}::bigint as reference_machine_hours"
        )
        connection.execute(
            "create table seeds.unit_conversions (unit text, to_unit text, factor double, addend double)"
        )
        for units, line in CONVERSIONS.items():
            connection.execute(
                "insert into seeds.unit_conversions values (?, ?, ?, ?)", [*units, *line]
            )
        for name, sql in models.items():
            connection.execute(f"create table {name} as {sql}")
        found = (
            connection.execute("from features.feat_sensor__windows").to_arrow_table().to_pylist()
        )
    keyed = {(row.pop("machine_id"), row.pop("as_of_at"), row.pop("sensor")): row for row in found}
    assert len(keyed) == len(found)
    return keyed


class Hour(NamedTuple):
    """What came of a sensor of a machine in an hour: accepted (read_at, millionths), and counts of the others."""

    accepted: list[tuple[datetime, int]]
    conflicting: int
    late: int
    rejected: int


def canonical(reading: Reading, sensor: Sensor) -> int | None:
    """Millionths of the registered unit; None for what cannot be."""
    value = reading.value
    if reading.unit != sensor.unit:
        line = CONVERSIONS.get((reading.unit, sensor.unit))
        if line is None:
            return None
        value = value * line[0] + line[1]
    low = -MOST if sensor.min_value is None else max(-MOST, sensor.min_value)
    high = MOST if sensor.max_value is None else min(MOST, sensor.max_value)
    return math.floor(value * 1e6 + 0.5) if low <= value <= high else None


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def by_hour(plant: Plant) -> dict[tuple[str, datetime, str], Hour]:
    """(machine_id, hour_at, sensor) to what came."""
    register = {(line.machine_model, line.sensor): line for line in plant.sensors}
    first: dict[tuple, Reading] = {}
    others: dict[tuple, set] = defaultdict(set)
    newest: dict[tuple, datetime] = {}
    late: set[tuple] = set()
    for reading in plant.readings:
        key = (reading.machine_id, reading.read_at, reading.sensor)
        sensor = (reading.machine_id, reading.sensor)
        if key not in first:
            first[key] = reading
            if newest.get(sensor, reading.read_at) > reading.read_at:
                late.add(key)
        elif reading != first[key]:
            others[key].add(reading)
        newest[sensor] = max(reading.read_at, newest.get(sensor, reading.read_at))
    known = {
        key: reading
        for key, reading in first.items()
        if key[0] in plant.machines and (plant.machines[key[0]][0], key[2]) in register
    }
    machines = defaultdict(set)
    for machine, read_at, _ in known:
        machines[hour_of(read_at)].add(machine)
    ahead_from = datetime.max
    if machines:
        usual = statistics.median(len(who) for who in machines.values())
        clock = max(
            hour for hour, who in machines.items() if len(who) >= max(usual / 10, min(usual, 2))
        )
        for hour in sorted(hour for hour in machines if hour > clock):
            if hour - (clock + HOUR) >= DAY:
                ahead_from = hour
                break
            clock = hour
    found: dict[tuple, Hour] = {}
    for key, reading in known.items():
        machine, read_at, sensor = key
        hour = (machine, hour_of(read_at), sensor)
        there = found.get(hour, Hour([], 0, 0, 0))
        micros = canonical(reading, register[plant.machines[machine][0], sensor])
        accepted = micros is not None and hour[1] < ahead_from
        found[hour] = Hour(
            [*there.accepted, (read_at, micros)] if accepted else there.accepted,
            there.conflicting + len(others[key]),
            there.late + (key in late),
            there.rejected + (not accepted),
        )
    return found


def condition(plant: Plant, hours: dict, machine: str, hour: datetime) -> int:
    """The operating condition of a machine in an hour, as a number."""
    model = plant.machines[machine][0]
    found, place = 0, 1
    for line in sorted(line for line in plant.sensors if line.machine_model == model):
        if line.is_setting and line.setting_step:
            values = [
                micros
                for _, micros in hours.get((machine, hour, line.sensor), Hour([], 0, 0, 0)).accepted
            ]
            if values:
                step = math.floor(line.setting_step * 1e6 + 0.5)
                level = math.floor(Fraction(sum(values), len(values) * step) + Fraction(1, 2))
                found += place * (500 + min(499, max(-499, level)))
            place *= 1000
    return found


def episodes_of(plant: Plant) -> dict[str, list[datetime]]:
    """When each machine's episodes start."""
    return {
        machine: sorted(
            {commissioned}
            | {
                at
                for who, at, kind in plant.works
                if who == machine and kind in ("repair", "preventive") and at > commissioned
            }
        )
        for machine, (_, commissioned) in plant.machines.items()
    }


def spoken(plant: Plant, hours: dict) -> dict[tuple[str, datetime], tuple[int, datetime, int]]:
    """Machine-hours to the number and start of their episode, and their condition."""
    episodes = episodes_of(plant)
    spoke: dict[tuple[str, datetime], tuple[int, datetime, int]] = {}
    for (machine, hour, _), there in sorted(hours.items()):
        begun = [at for at in episodes[machine] if at <= hour]
        if there.accepted and begun:
            spoke[machine, hour] = (
                len(begun) - 1,
                begun[-1],
                condition(plant, hours, machine, hour),
            )
    return spoke


def references_of(plant: Plant, hours: dict, spoke: dict) -> dict[tuple, tuple]:
    """(model, sensor, condition) to mean and standard deviation (millionths), and since when they are known."""
    healthy = defaultdict(list)
    for (machine, hour), (_, started_at, at_condition) in spoke.items():
        if hour < started_at + BASELINE_HOURS * HOUR:
            for (who, when, sensor), there in hours.items():
                if (who, when) == (machine, hour) and there.accepted:
                    healthy[plant.machines[machine][0], sensor, at_condition].append(
                        (hour, machine, [micros for _, micros in there.accepted])
                    )
    references = {}
    for key, seen in healthy.items():
        if len(seen) >= REFERENCE_MACHINE_HOURS:
            first = sorted(seen)[:REFERENCE_MACHINE_HOURS]
            values = [micros for _, _, some in first for micros in some]
            std = statistics.stdev([Fraction(value) for value in values])
            references[key] = (sum(values) // len(values), std, first[-1][0] + HOUR)
    return references


def by_definition(plant: Plant, references: dict[tuple, tuple] | None = None) -> dict[tuple, dict]:
    """The features as their definition reads: of every row, which readings count."""
    hours = by_hour(plant)
    spoke = spoken(plant, hours)
    if references is None:
        references = references_of(plant, hours, spoke)
    found = {}
    for (machine, hour), (episode, started_at, at_condition) in spoke.items():
        model = plant.machines[machine][0]
        before = [
            when
            for (who, when), (number, _, _) in spoke.items()
            if who == machine and number == episode and when <= hour
        ]
        for sensor in {s for who, when, s in hours if who == machine and when in before}:
            mine = {
                when: hours[machine, when, sensor]
                for when in before
                if (machine, when, sensor) in hours
            }
            heard = [when for when, there in mine.items() if there.accepted]
            if not heard:
                continue
            mine = {when: there for when, there in mine.items() if when >= min(heard)}
            deviations = {}
            for when, there in mine.items():
                known = references.get((model, sensor, spoke[machine, when][2]))
                if known and known[2] <= when and there.accepted:
                    deviations[when] = [micros - known[0] for _, micros in there.accepted]
            row: dict = {"episode_number": episode}
            healthy_so_far = [
                deviation
                for when, some in deviations.items()
                if when < started_at + BASELINE_HOURS * HOUR
                for deviation in some
            ]
            baseline = mean(healthy_so_far)
            row["deviation_baseline"] = units(baseline)
            now = references.get((model, sensor, at_condition))
            std_now = now[1] if now and now[2] <= hour else None
            for window in WINDOWS:
                inside = [when for when in mine if when > hour - window * HOUR]
                values = [micros for when in inside for _, micros in mine[when].accepted]
                points = [
                    ((when - START) // HOUR, deviation)
                    for when in inside
                    for deviation in deviations.get(when, [])
                ]
                ys = [Fraction(y) for _, y in points]
                average = mean(ys)
                row[f"readings_count_{window}h"] = len(values)
                row[f"value_avg_{window}h"] = units(mean(values))
                row[f"value_min_{window}h"] = units(min(values, default=None))
                row[f"value_max_{window}h"] = units(max(values, default=None))
                row[f"deviation_avg_{window}h"] = units(average)
                row[f"deviation_std_{window}h"] = units(
                    statistics.stdev(ys) if len(ys) > 1 else None
                )
                row[f"deviation_slope_{window}h"] = units(slope(points))
                row[f"deviation_distance_{window}h"] = (
                    None
                    if average is None or baseline is None or not std_now
                    else float(average - baseline) / float(std_now)
                )
            row["hours_since_reading"] = (
                hour + HOUR - max(at for there in mine.values() for at, _ in there.accepted)
            ) / HOUR
            row["is_stuck"] = (
                row["readings_count_24h"] >= 6 and row["value_min_24h"] == row["value_max_24h"]
            )
            for count in ("conflicting", "late", "rejected"):
                row[f"{count}_count_24h"] = sum(
                    getattr(there, count) for when, there in mine.items() if when > hour - DAY
                )
            found[machine, hour + HOUR, sensor] = row
    return found


def mean(values: list) -> Fraction | None:
    return Fraction(sum(values), len(values)) if values else None


def units(micros: Fraction | float | None) -> float | None:
    return None if micros is None else float(micros) / 1e6


def slope(points: list[tuple[int, int]]) -> Fraction | None:
    """Least squares; None when all lie in one hour."""
    if len({x for x, _ in points}) < 2:
        return None
    middle_x, middle_y = mean([x for x, _ in points]), mean([y for _, y in points])
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / sum(
        (x - middle_x) ** 2 for x, _ in points
    )


def differences(built: dict[tuple, dict], expected: dict[tuple, dict]) -> list:
    """(key, column, built, expected) where the two differ: counts at all, numbers by more than 1e-9."""
    assert built.keys() == expected.keys()
    found = []
    for key, row in expected.items():
        assert built[key].keys() == row.keys()
        for column, value in row.items():
            there = built[key][column]
            if isinstance(value, float) and there is not None:
                same = math.isclose(there, value, rel_tol=1e-9, abs_tol=1e-9)
            else:
                same = there == value
            if not same:
                found.append((key, column, there, value))
    return found


moments = st.builds(
    lambda hour, part: START + hour * HOUR + part,
    st.integers(-1, 40) | st.sampled_from([70, 71, 100]),
    st.sampled_from([timedelta(0), timedelta(minutes=20), HOUR - timedelta(microseconds=1)]),
)
readings = st.builds(
    Reading,
    st.sampled_from(["a", "a", "b", "c", "d", "stranger"]),
    moments,
    st.sampled_from(
        ["temperature_c", "temperature_c", "vibration", "load_pct", "speed", "room", "unheard_of"]
    ),
    st.sampled_from([0.0, 1.0, 4.999999, 5.0, 95.0, -300.0, 1e12, math.nan, math.inf])
    | st.floats(-300, 300, allow_nan=False),
    st.sampled_from(["degC", "degC", "mm/s", "%", "rpm", "degF", "K", "furlong"]),
)
UNITS = {"temperature_c": "degC", "load_pct": "%", "vibration": "mm/s"}
regular = st.builds(
    lambda machine, sensor, first, values, misread: [
        Reading(
            machine,
            START + (first + place) * HOUR,
            sensor,
            value,
            "furlong" if place in range(*misread) else UNITS[sensor],
        )
        for place, value in enumerate(values)
    ],
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(list(UNITS)),
    st.integers(0, 10),
    st.lists(st.sampled_from([20.0, 20.5, 30.0, 31.25]), min_size=6, max_size=30),
    st.tuples(st.integers(0, 10), st.integers(0, 30)),
)
plants = st.builds(
    lambda works, failures, some, runs, random: Plant(
        MACHINES,
        SENSORS,
        works,
        failures,
        shuffled([*some, *(r for run in runs for r in run)], random),
    ),
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            moments,
            st.sampled_from(["repair", "preventive", "recalibration"]),
        ),
        max_size=3,
    ),
    st.lists(st.tuples(st.sampled_from("abcd"), moments), max_size=2),
    st.lists(readings, max_size=30),
    st.lists(regular, max_size=4),
    st.randoms(use_true_random=False),
)


def shuffled(rows: list[Reading], random) -> list[Reading]:
    """As they arrive: in the order of time but for every tenth, some twice."""
    rows = sorted(rows, key=lambda row: (row.read_at, random.random()))
    for _ in range(len(rows) // 10):
        rows.insert(random.randrange(len(rows)), rows[random.randrange(len(rows))])
        rows.append(rows.pop(random.randrange(len(rows))))
    return rows


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plant=plants)
def test_features_of_any_readings_are_what_their_definition_says(models, plant):
    assert differences(features(models, plant), by_definition(plant)) == []


def plant_of(seed: int, hours: int = 60) -> Plant:
    """A plant of six machines, full of what goes wrong."""
    rng = np.random.default_rng(seed)
    machines = {
        f"m{number}": (
            str(rng.choice(["press", "pump"])),
            START + int(rng.integers(-9, 9)) * HOUR / 2,
        )
        for number in range(6)
    }
    found = []
    for machine, (model, _) in machines.items():
        for line in (line for line in SENSORS if line.machine_model == model):
            level = (
                rng.choice([25.0, 75.0], hours)
                if line.sensor == "load_pct"
                else np.full(hours, 40.0)
            )
            for place in range(0, hours * 3, int(rng.choice([1, 2]))):
                if rng.random() < 0.1 or (place // 30) % 6 == int(rng.integers(0, 12)):
                    continue
                value = float(level[place // 3] + (rng.normal() if line.unit == "degC" else 0))
                at = START + place * HOUR / 3 + timedelta(seconds=int(rng.integers(0, 60)))
                unit = line.unit
                if unit == "degC" and rng.random() < 0.1:
                    value, unit = value * 1.8 + 32, "degF"
                if line.sensor == "vibration" and 60 <= place < 90:
                    unit = "furlong"  # for longer than a window
                if rng.random() < 0.02:
                    value, unit = (
                        float(rng.choice([-1e3, 1e10, 5.0])),
                        str(rng.choice([unit, "furlong"])),
                    )
                found.append(Reading(machine, at, line.sensor, value, unit))
                if rng.random() < 0.03:
                    found.append(found[-1]._replace(value=float(rng.choice([value, value + 1]))))
    found.sort(
        key=lambda row: row.read_at + (rng.random() < 0.05) * int(rng.integers(0, 20)) * HOUR
    )
    found += [found[0]._replace(read_at=START + (hours + 30) * HOUR)]
    works = [
        (str(rng.choice(list(machines))), START + int(rng.integers(0, hours * 2)) * HOUR / 2, kind)
        for kind in ("repair", "preventive", "preventive", "recalibration")
    ]
    return Plant(machines, SENSORS, works, [], found)


@pytest.mark.parametrize("seed", range(3))
def test_features_of_generated_plants_are_what_their_definition_says(models, seed):
    plant = plant_of(seed)
    expected = by_definition(plant)
    known = [row for row in expected.values() if row["deviation_distance_24h"] is not None]
    assert len(known) > 100
    assert {row["is_stuck"] for row in expected.values()} == {True, False}
    assert differences(features(models, plant), expected) == []


def test_what_is_read_or_done_later_changes_no_earlier_row(models):
    plant = plant_of(seed=7)
    now = START + 31 * HOUR
    then = plant._replace(
        readings=[reading for reading in plant.readings if reading.read_at < now],
        works=[work for work in plant.works if work[1] < now],
    )
    known = {key: row for key, row in features(models, plant).items() if key[1] <= now}
    without = features(models, then)
    for row in (*known.values(), *without.values()):
        del row["late_count_24h"]  # late is what arrived after a later reading, which `then` lacks
    assert len(known) > 300
    assert without == known
