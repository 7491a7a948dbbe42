"""The windows of sensors against the oracle of the SQL: in order, late, silent, and with news of the plant."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.streaming import sensor_windows as windows
from orchestration.streaming.events import UnfitError, at_time, microseconds
from orchestration.streaming.maintenance_state import Snapshot
from tests.unit import test_sensor_features as definition
from tests.unit.test_sensor_features import DAY, HOUR, START, by_definition, plants

ALIVE = [
    definition.Reading("d", START + hour * HOUR, "temperature_c", 20.0, "degC")
    for hour in range(-1, 46)
]
"""A machine that speaks every hour: so the clock goes on, and nothing is ahead of it."""
quick = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def known(plant, references=None):
    """What the stream is told of a plant."""
    if references is None:
        hours = definition.by_hour(plant)
        references = definition.references_of(plant, hours, definition.spoken(plant, hours))
    sensors: dict = {}
    for line in plant.sensors:
        step = line.setting_step if line.is_setting else None
        sensors.setdefault(line.machine_model, {})[line.sensor] = windows.Spec(
            line.unit, line.min_value, line.max_value, round(step * 1e6) if step else 0
        )
    return windows.Plant(
        {
            machine: windows.Record(
                plant.machines[machine][0], tuple(map(microseconds, starts))
            )
            for machine, starts in definition.episodes_of(plant).items()
        },
        sensors,
        definition.CONVERSIONS,
        {
            key: windows.Reference(mean, float(std), microseconds(since) // windows.HOUR)
            for key, (mean, std, since) in references.items()
        },
        definition.BASELINE_HOURS,
    )  # fmt: skip


def reading(row):
    return windows.Reading(row.machine_id, row.sensor, microseconds(row.read_at), *row[3:])


def rows_of(hour):
    """A closed hour in the form of the oracle's rows."""
    as_of_at = at_time(hour.as_of).replace(tzinfo=None)
    return {
        (hour.machine_id, as_of_at, sensor): {
            "episode_number": hour.episode_number,
            **dict(zip(windows.FEATURES, row, strict=True)),
        }
        for sensor, row in hour.sensors.items()
    }


def told(state, rows):
    """Every closed hour, with the number of the reading that closed it."""
    for number, row in enumerate(rows):
        try:
            for hour in state.add(reading(row)):
                yield number, hour
        except UnfitError:
            continue


def of(expected, hour):
    """The oracle's rows of the hour."""
    keys = rows_of(hour).keys() | {
        key
        for key in expected
        if key[:2] == (hour.machine_id, at_time(hour.as_of).replace(tzinfo=None))
    }
    return {key: expected[key] for key in keys}


@quick
@given(plant=plants)
def test_in_the_order_of_time_every_hour_has_the_features_of_the_definition(plant):
    rows = [row for row in plant.readings if row.read_at < START + 42 * HOUR]
    rows = sorted([*rows, *ALIVE], key=lambda row: row.read_at)
    plant = plant._replace(readings=rows)
    expected = by_definition(plant)
    found = {}
    for _, hour in told(windows.SensorWindows(known(plant)), rows):
        assert not found.keys() & rows_of(hour).keys()
        found |= rows_of(hour)
    missing = {key for key in expected if key[1] <= START + 43 * HOUR} - found.keys()
    assert not missing
    assert definition.differences(found, {key: expected[key] for key in found}) == []


@quick
@given(plant=plants, random=st.randoms(use_true_random=False))
def test_late_readings_are_in_the_features_of_the_hours_that_close_after_them(plant, random):
    """Up to a day late: what an hour's features hold is what had come by then."""
    rows = [
        row._replace(read_at=START + (row.read_at - START) % (22 * HOUR))
        for row in [*plant.readings, *ALIVE[:20]]
    ]
    rows = definition.shuffled(rows, random) + [
        definition.Reading(machine, START + 23 * HOUR, sensor, 20.0, unit)
        for machine, sensor, unit in (
            ("a", "temperature_c", "degC"), ("c", "temperature_c", "degC"),
            ("d", "temperature_c", "degC"),
        )
    ]  # fmt: skip
    hours = definition.by_hour(plant._replace(readings=rows))
    references = definition.references_of(plant, hours, definition.spoken(plant, hours))
    closed = list(told(windows.SensorWindows(known(plant, references)), rows))
    assert closed
    for number, hour in random.sample(closed, min(len(closed), 6)):
        came = plant._replace(readings=rows[:number])
        expected = of(by_definition(came, references), hour)
        assert definition.differences(rows_of(hour), expected) == []


def a_plant(works=(), hours=60):
    """Two pumps that read every half hour."""
    rows = [
        definition.Reading(
            machine, START + step * HOUR / 2, sensor, (7 * step) % 11 + step / 9, unit
        )
        for step in range(2 * hours)
        for machine in ("c", "d")
        for sensor, unit in (("temperature_c", "degC"), ("vibration", "mm/s"))
    ]
    machines = dict.fromkeys(("c", "d"), ("pump", START))
    return definition.Plant(machines, definition.SENSORS, list(works), [], rows)


def test_an_episode_that_is_learned_of_late_begins_where_it_began():
    repaired = a_plant([("c", START + 10 * HOUR, "repair")])
    rows, expected = repaired.readings, by_definition(repaired)
    plant, cut = known(repaired), 4 * 45
    state = windows.SensorWindows(known(a_plant(), references={}))
    for _ in told(state, rows[:cut]):
        pass
    state.use(plant)
    state.recall(landed_of(rows[:cut], plant, {"c": 0, "d": 0}).hours)
    found = {}
    for _, hour in told(state, rows[cut:]):
        found |= rows_of(hour)
    assert {row["episode_number"] for row in found.values()} == {0, 1}
    assert len(found) > 50
    assert definition.differences(found, {key: expected[key] for key in found}) == []


def test_a_machine_that_becomes_known_goes_on_from_what_had_landed():
    whole = a_plant()
    rows, expected, cut = whole.readings, by_definition(whole), 4 * 45
    plant = known(whole)
    without = {name: record for name, record in plant.machines.items() if name != "d"}
    state = windows.SensorWindows(
        windows.Plant(without, plant.sensors, plant.conversions, plant.references, 5)
    )
    assert {hour.machine_id for _, hour in told(state, rows[:cut])} == {"c"}
    state.use(plant)
    state.recall(landed_of(rows[:cut], plant, {"c": 0, "d": 0}).hours)
    found = {}
    for _, hour in told(state, rows[cut:]):
        found |= rows_of(hour)
    assert {key[0] for key in found} == {"c", "d"}
    assert definition.differences(found, {key: expected[key] for key in found}) == []


def disturbed(rows, seed):
    """Readings as they come when all goes wrong: again, with another value, late, in other units, impossible."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        what = draw.random()
        if what < 0.03:
            row = row._replace(unit="degF" if row.sensor == "temperature_c" else "furlong")
        elif what < 0.05:
            row = row._replace(value=draw.choice([1e12, -1e6]))
        place = len(found) - (draw.choice([1, 7, 60, 150]) if draw.random() < 0.05 else 0)
        found.insert(max(0, place), row)
        if draw.random() < 0.04:
            found.append(draw.choice(found[-50:]))
        if draw.random() < 0.04:
            found.append(draw.choice(found[-50:])._replace(value=draw.random()))
    silent = draw.randrange(len(found) - 20, len(found))
    return [row for n, row in enumerate(found) if n < silent or row.machine_id == "c"]


def landed_of(rows, plant, parts, only=None):
    """What the warehouse knows of readings that have landed."""
    columns = {
        "machine_id": [row.machine_id for row in rows],
        "read_at": pa.array([row.read_at for row in rows], pa.timestamp("us")),
        "sensor": [row.sensor for row in rows],
        "value": pa.array([row.value for row in rows], pa.float64()),
        "unit": [row.unit for row in rows],
        "_loaded_at": pa.array(
            [START + n // 50 * HOUR for n in range(len(rows))], pa.timestamp("us")
        ),
        "_source_position": [f"readings/{parts[row.machine_id]}/{n}" for n, row in enumerate(rows)],
    }
    landed = pa.table(columns).take(np.random.default_rng(0).permutation(len(rows)))
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("create schema raw")
        connection.execute("create table raw.plant_stream__readings as from landed")
        del landed
        return Snapshot(connection).readings(None, plant, only)


def inside(state):
    """What a state knows, but for its totals, which it makes of that, and the readings that it remembers."""
    return state.newest, state._clocks, {
        name: (
            machine.newest, machine.hour, machine.partition, machine.is_open, machine.spoken,
            {
                sensor: (own.newest, own.last, own.hours, own.flags)
                for sensor, own in machine.sensors.items()
            },
        )
        for name, machine in state._machines.items()
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_the_state_summed_up_from_what_landed_is_the_one_that_was_lived(seed):
    whole = a_plant([("c", START + 10 * HOUR, "repair")], hours=40)
    rows, plant = disturbed(whole.readings, seed), known(whole)
    parts = {"c": 0, "d": seed % 2}
    cut = len(rows) - 60 if seed % 3 else len(rows)

    def live(state, some):
        return [added(state, reading(row), parts[row.machine_id]) for row in some]

    lived, rebuilt = windows.SensorWindows(plant), windows.SensorWindows(plant)
    live(lived, rows[:cut])
    rebuilt.rebuild(landed_of(rows[:cut], plant, parts))
    assert inside(rebuilt) == inside(lived)
    after = [row._replace(read_at=row.read_at + 2 * DAY) for row in whole.readings[:40]]
    rest = rows[cut:] + rows[cut - 30 : cut] + after  # some of them once more
    told_then = live(lived, rest)
    assert {"duplicate", "conflicting reading"} & set(map(str, told_then))
    assert live(rebuilt, rest) == told_then


def added(state, one, partition):
    """The hours that a reading closes, or why it is left out."""
    try:
        return state.add(one, partition)
    except UnfitError as reason:
        return str(reason)


def test_a_machines_history_counts_what_was_before_the_hours_end():
    begin = microseconds(START)
    record = windows.Record(
        "pump", (begin, begin + 10 * windows.HOUR), (begin + 10 * windows.HOUR,),
        (begin + 12 * windows.HOUR,), (begin + 9 * windows.HOUR, begin + 40 * windows.HOUR),
        (begin + 5 * windows.HOUR, begin + 20 * windows.HOUR, begin + 40 * windows.HOUR),
    )  # fmt: skip
    whole = a_plant()
    plant = known(whole)
    plant = windows.Plant({"c": record}, plant.sensors, plant.conversions, {}, 24)
    state = windows.SensorWindows(plant)
    last = None
    for _, hour in told(state, [row for row in whole.readings if row.machine_id == "c"]):
        if hour.as_of == begin + 40 * windows.HOUR:
            last = dict(zip(windows.HISTORY, hour.history, strict=True))
    assert last == {
        "age_hours": 40.0, "episode_hours": 30.0, "hours_since_maintenance": 30.0,
        "hours_since_recalibration": 28.0, "errors_count_24h": 1, "failures_count": 1,
        "silent_sensors_count": 0, "readings_count_24h": 96,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("nobody", "temperature_c", 0, 1.0, "degC"), "unknown machine"),
        (("c", "unheard_of", 0, 1.0, "degC"), "unknown sensor"),
        (("c", "temperature_c", 0, 1.0, "furlong"), "unknown unit"),
        (("c", "temperature_c", 0, 151.0, "degC"), "impossible value"),
        (("c", "temperature_c", 0, 1e12, "degC"), "impossible value"),
        (("c", "temperature_c", -1, 1.0, "degC"), "duplicate"),
        (("c", "temperature_c", -1, 2.0, "degC"), "conflicting reading"),
        (("c", "vibration", -25 * 60, 2.0, "mm/s"), "more than 24 h late"),
    ],
)
def test_what_is_no_reading_is_left_out_with_its_reason(row, reason):
    state = windows.SensorWindows(known(a_plant(), references={}))
    begin = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
    first = definition.Reading("c", begin - timedelta(minutes=1), "temperature_c", 1.0, "degC")
    state.add(reading(first))
    machine, sensor, minutes, value, unit = row
    came = definition.Reading(machine, begin + timedelta(minutes=minutes), sensor, value, unit)
    with pytest.raises(UnfitError, match=reason):
        state.add(reading(came))


def test_memory_does_not_grow_with_time():
    whole = a_plant(hours=24)
    state = windows.SensorWindows(known(whole))
    for day in range(40):
        moved = [row._replace(read_at=row.read_at + day * DAY) for row in whole.readings]
        for _ in told(state, moved):
            pass
    (own, *_) = state._machines["c"].sensors.values()
    assert max(len(own.hours), len(own.ends), len(state._machines["c"].spoken)) < 150
    assert len(own.times) < 2 * windows.REMEMBERED
