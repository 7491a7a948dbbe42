"""The machines' scorer over a stream on disk: what it says, what it sets aside, and that a restart changes nothing."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from orchestration.demo.plant import simulate
from orchestration.settings import load_settings
from orchestration.streaming.maintenance_state import Snapshot
from orchestration.streaming.sensor_plant import Plant, Record, Spec
from orchestration.streaming.topics import one_moment
from tests.unit.streaming.maintenance_house import WORLD, Machines, known_of, readings_of, use_case

BEGIN = datetime(2025, 3, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def simulated():
    return simulate(WORLD)


@pytest.fixture
def machines(settings, simulated):
    return Machines(settings, known_of(simulated))


def test_every_machine_hour_gets_its_health_and_every_sensor_its_features(machines, simulated):
    events = readings_of(simulated)
    machines.put(events)
    status = machines.score()
    said = machines.said()
    hours = {(e["machine_id"], e["read_at"][:13]) for _, e in events}
    assert len(hours) - len(WORLD.models) * WORLD.machines * 20 < len(said["machine_health"])
    assert len(said["machine_health"]) <= len(hours)
    assert status.scored + status.set_aside.total() == len(events)
    assert {"duplicate", "impossible value"} <= status.set_aside.keys()
    assert len(said["sensor_features"]) > 4 * len(said["machine_health"])
    assert any(row["deviation_distance_24h"] for row in said["sensor_features"].values())
    counts = {}
    for (machine, as_of, _), row in said["sensor_features"].items():
        counts[machine, as_of] = counts.get((machine, as_of), 0) + row["readings_count_24h"]
    assert counts == {k: h["readings_count_24h"] for k, h in said["machine_health"].items()}
    assert len(machines.read("machine_health")) == len(said["machine_health"])  # each once


def test_warnings_open_close_and_say_why(machines, simulated):
    machines.put(readings_of(simulated))
    status = machines.score()
    warnings = machines.said()["warnings"]
    opened = [row for (_, state), row in warnings.items() if state == "opened"]
    closed = [row for (_, state), row in warnings.items() if state == "closed"]
    assert status.alerts == len(opened) > 3
    assert all(row["reasons"] for row in opened)
    assert {row["closed_by"] for row in closed} == {"maintenance", "recovered"}
    assert {row["warning_id"] for row in closed} <= {row["warning_id"] for row in opened}
    by_machine = {}
    for row in machines.read("warnings"):  # one at a time
        before = by_machine.get(row["machine_id"], "closed")
        assert (before, row["state"]) in (("closed", "opened"), ("opened", "closed"))
        by_machine[row["machine_id"]] = row["state"]


EVENTS = 4_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory, simulated):
    """The first events, scored without an interruption."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("whole"))
    machines = Machines(settings, known_of(simulated))
    machines.put(readings_of(simulated)[:EVENTS])
    machines.score()
    return machines


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_at_any_place_with_landing_behind_or_ahead_changes_nothing(
    tmp_path, simulated, whole, seed
):
    plant, events = whole.plant, readings_of(simulated)[:EVENTS]
    draw = random.Random(seed)
    machines = Machines(load_settings(data_dir=tmp_path / "cut"), plant)
    cuts = sorted(draw.sample(range(1_000, len(events)), 3))
    for start, stop in zip([0, *cuts], [*cuts, len(events)], strict=True):
        machines.put(events[start:stop])
        if start and draw.random() < 0.5:
            machines.land("readings")  # ahead of the scorer
        if not start or draw.random() < 0.7:
            machines.score()
        if draw.random() < 0.5:
            machines.land()
    machines.score()
    assert machines.said() == whole.said()
    assert len(machines.read("machine_health")) == len(whole.read("machine_health"))
    machines.land()
    before = (
        machines.end("sensor_features"),
        machines.end("machine_health"),
        machines.end("warnings"),
    )
    machines.score()
    assert before == (
        machines.end("sensor_features"), machines.end("machine_health"), machines.end("warnings")
    )  # fmt: skip


def test_what_was_lost_on_the_way_is_said_again(tmp_path, simulated, whole):
    """The messages of one topic may be confirmed, and those of another not, when a scorer dies."""
    plant, events = whole.plant, readings_of(simulated)[:EVENTS]
    for lost in ("sensor_features", "warnings", "machine_health"):
        machines = Machines(load_settings(data_dir=tmp_path / lost), plant)
        machines.put(events)
        for topic in ("sensor_features", "warnings", "machine_health"):
            messages = whole.read(topic)
            machines.put([(topic, one) for one in messages[: -20 if topic == lost else None]])
        machines.score()
        assert machines.said() == whole.said(), lost


def pump(machine="pump-1", minutes=0, sensor="temperature_c", value=20.0, unit="degC", **other):
    at = BEGIN + timedelta(minutes=minutes)
    return (
        "readings",
        {
            "machine_id": machine,
            "read_at": at.isoformat(),
            "sensor": sensor,
            "value": value,
            "unit": unit,
        }
        | other,
    )


def a_plant(machines=4):
    begin = int(BEGIN.timestamp() * 1e6)
    specs = {"temperature_c": Spec("degC", -40, 250), "vibration": Spec("mm/s", 0, None)}
    return Plant(
        {f"pump-{n}": Record("pump", (begin - 10**13,)) for n in range(1, machines + 1)},
        {"pump": specs},
        {("degF", "degC"): (0.5555555555555556, -17.77777777777778)},
    )


POISON = {
    "malformed JSON": b'{"machine_id": ',
    "missing value": {k: v for k, v in pump()[1].items() if k != "value"},
    "unfit value": pump(value=None)[1],
    "unfit machine_id": pump(machine="")[1],
    "unfit read_at": pump(read_at="noon")[1],
    "time of another century": pump(read_at="1970-01-01T00:00:00Z")[1],
    "too large": b'{"machine_id": "' + b"x" * (2 << 20) + b'"}',
    "unknown machine": pump(machine="nobody's")[1],
    "unknown sensor": pump(sensor="unheard_of")[1],
    "unknown unit": pump(minutes=1, unit="furlong")[1],
    "impossible value": pump(minutes=1, value=-100.0)[1],
    "duplicate": pump()[1],
    "conflicting reading": pump(value=21.0)[1],
    "more than 24 h late": pump(minutes=-24 * 60 - 1)[1],
    "clock in the future": pump(minutes=24 * 60 + 1)[1],
}


@pytest.mark.parametrize("reason", POISON)
def test_what_is_no_reading_is_set_aside_with_its_reason_and_the_next_one_counts(settings, reason):
    machines = Machines(settings, a_plant())
    poison = POISON[reason]
    value = poison if isinstance(poison, bytes) else json.dumps(poison).encode()
    machines.put([pump(), ("readings", value), pump(minutes=2), pump(minutes=61)])
    status = machines.score()
    assert dict(status.set_aside) == {reason: 1}
    (health,) = machines.said()["machine_health"].values()
    assert health["readings_count_24h"] == 2


def test_a_sensor_that_changes_its_unit_goes_on(settings):
    machines = Machines(settings, a_plant())
    machines.put([pump(), pump(minutes=20, value=68.0, unit="degF"), pump(minutes=60)])
    machines.score()
    (row,) = machines.said()["sensor_features"].values()
    assert (row["value_min_6h"], row["value_max_6h"]) == (20.0, 20.0)


def test_the_hour_that_a_clock_skips_in_spring_is_no_gap(settings):
    """02:30 at the winter's offset and 03:30 at the summer's are the same moment."""
    machines = Machines(settings, a_plant())
    texts = ("2025-03-30T01:30:00+01:00", "2025-03-30T03:30:00+02:00", "2025-03-30T04:30:00+02:00")
    machines.put([pump(read_at=text) for text in texts])
    machines.score()
    ends = [as_of for _, as_of in machines.said()["machine_health"]]
    assert ends == ["2025-03-30T01:00:00Z", "2025-03-30T02:00:00Z"]


def test_a_silent_machines_hour_is_closed_when_the_others_are_an_hour_past_it(settings):
    machines = Machines(settings, a_plant())
    machines.put([pump(), pump("pump-2", 10), pump("pump-2", 70), pump("pump-2", 119)])
    machines.score()
    assert {m for m, _ in machines.said()["machine_health"]} == {"pump-2"}
    machines.put([pump("pump-2", 121)])
    machines.score()
    assert {m for m, _ in machines.said()["machine_health"]} == {"pump-1", "pump-2"}


def test_after_a_week_of_silence_the_backlog_of_all_machines_counts(settings):
    machines = Machines(settings, a_plant())
    week = 7 * 24 * 60
    backlog = [
        pump(f"pump-{n}", week + minutes) for n in range(1, 5) for minutes in range(0, 600, 20)
    ]
    machines.put([pump(f"pump-{n}") for n in range(1, 5)] + backlog)
    status = machines.score()
    assert not +status.set_aside
    assert len(machines.said()["machine_health"]) == 4 * 10  # the last hour is open


def test_a_warning_is_acknowledged_once_and_no_other_warning_can_be(machines, simulated):
    machines.put(readings_of(simulated))
    machines.score()
    rows = machines.read("warnings")
    closed = {row["warning_id"] for row in rows if row["state"] == "closed"}
    still = next(row for row in rows if row["warning_id"] not in closed)
    taken = {"warning_id": still["warning_id"], "acknowledged_at": "2025-02-01T08:00:00Z"}
    machines.put([("acknowledgements", taken), ("acknowledgements", taken)])
    machines.put([("acknowledgements", taken | {"warning_id": "of no one"})])
    machines.score()
    assert machines.end("warnings") == len(rows) + 1
    last = machines.read("warnings")[-1]
    assert (last["state"], last["warning_id"]) == ("acknowledged", still["warning_id"])
    assert last["changed_at"] == taken["acknowledged_at"]
    assert last["failure_probability"] == still["failure_probability"]
    machines.land()
    machines.put([("acknowledgements", taken)])
    machines.score()
    assert machines.end("warnings") == len(rows) + 1


def test_news_of_the_plant_are_taken_in_while_the_stream_goes_on(settings):
    machines = Machines(settings, a_plant(machines=1))
    scorer = use_case(settings, machines.plant)
    whole = a_plant(machines=2)
    machines.use_case = lambda model: scorer
    machines.put([pump(), pump("pump-2"), pump("pump-2", 60), pump(minutes=60)])
    assert machines.score().set_aside["unknown machine"] == 2
    scorer._plant.plant = whole
    scorer._plant.news.append((whole, []))
    machines.put([pump("pump-2", 120), pump("pump-2", 180)])

    def go_on(consumers):
        """From where it stands, without another start."""
        acknowledgements, readings = consumers
        acknowledgements.start({})
        readings.start({"0": 4})
        return iter(())

    scorer.start = go_on
    machines.score()
    assert ("pump-2", "2025-03-30T03:00:00Z") in machines.said()["machine_health"]


def test_one_clock_in_the_future_does_not_stop_a_restarted_scorer(settings):
    machines = Machines(settings, a_plant())
    machines.put([pump(minutes=20 * n) for n in range(30)])
    machines.put([pump("pump-2", 400 * 24 * 60), *[pump(minutes=600 + 20 * n) for n in range(6)]])
    machines.score()
    machines.land()
    machines.put([pump(minutes=720 + 20 * n) for n in range(6)])
    machines.score()
    hours = [as_of for machine, as_of in machines.said()["machine_health"] if machine == "pump-1"]
    assert len(hours) == 13
    last = machines.said()["machine_health"]["pump-1", "2025-03-30T13:00:00Z"]
    assert last["readings_count_24h"] == 39


def test_without_a_build_there_is_no_plant_and_no_error(settings):
    Machines(settings, a_plant())
    with one_moment(settings) as connection:
        assert Snapshot(connection).plant() is None
