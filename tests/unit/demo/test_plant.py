"""The simulated plant: wear shows before failures, a seed is a plant, a second fill adds nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta

import polars as pl
import pytest

from orchestration.connectors import event_log
from orchestration.demo import events, plant
from orchestration.demo.plant import MODELS, Plant, World, fill, simulate
from orchestration.errors import MendableError

SMALL = World(models=MODELS[:1], machines=2, days=20, minutes=60)


@pytest.fixture(scope="module")
def simulated() -> Plant:
    return simulate(World(machines=4, days=90, minutes=60))


def frame(table) -> pl.DataFrame:
    return pl.from_arrow(table).with_columns(pl.col(pl.Categorical).cast(pl.String))


def test_a_seed_is_a_plant():
    one, same, other = simulate(SMALL), simulate(SMALL), simulate(World(seed=1, machines=1, days=5))
    assert one.readings.equals(same.readings)
    assert all(one.tables[name].equals(same.tables[name]) for name in one.tables)
    assert not one.readings.equals(other.readings)


def test_every_model_fails_often_enough_to_learn_from_and_from_each_component():
    failures = frame(simulate(World()).tables["failures"]).with_columns(
        model=pl.col("machine_id").str.split("-").list.first()
    )
    for model in MODELS:
        of_model = failures.filter(pl.col("model") == model.name)
        assert len(of_model) >= 25
        assert of_model.filter(pl.col("failed_at") < datetime(2025, 2, 1)).height >= 10
        assert set(of_model["component"]) >= set(model.components)


def test_a_failure_is_repaired_within_a_day_and_nothing_is_read_meanwhile(simulated):
    failures, upkeep = (frame(simulated.tables[name]) for name in ("failures", "maintenance"))
    readings = frame(simulated.readings).group_by("machine_id").agg("read_at")
    read = dict(readings.iter_rows())
    repairs = upkeep.filter(pl.col("kind") == "repair")
    for _, machine, failed_at, component in failures.rows():
        after = repairs.filter(
            pl.col("machine_id") == machine, pl.col("performed_at") > failed_at
        ).sort("performed_at")
        if after.is_empty():  # the world ended first
            assert failed_at > datetime(2025, 3, 31)
            continue
        _, _, repaired_at, _, of = after.row(0)
        assert repaired_at - failed_at < timedelta(hours=16)
        assert of == component
        assert not any(failed_at <= at < repaired_at for at in read[machine])


def test_wear_shows_in_the_components_sensors_in_the_days_before_its_failure(simulated):
    readings = frame(simulated.readings).filter(pl.col("unit") == "mm/s", pl.col("value") < 100)
    found = []
    for _, machine, failed_at, component in frame(simulated.tables["failures"]).rows():
        if component != "bearing":
            continue
        of = readings.filter(pl.col("machine_id") == machine)
        last, healthy = (
            of.filter(pl.col("read_at").is_between(failed_at - since, failed_at - until))["value"]
            for since, until in (
                (timedelta(hours=12), timedelta(0)),
                (timedelta(hours=220), timedelta(hours=190)),
            )
        )
        if len(last) > 5 and len(healthy) > 5:
            found.append((last.mean() - healthy.mean()) / 0.3)
    assert len(found) >= 5
    assert sorted(found)[len(found) // 2] > 3


def test_readings_arrive_in_order_but_for_a_few_and_some_come_twice(simulated):
    readings = frame(simulated.readings)
    assert readings["arrived_at"].is_sorted()
    late = (readings["arrived_at"] - readings["read_at"]).dt.total_seconds() >= 3_600
    assert 0 < late.mean() < 0.01
    assert 0 < readings.select("machine_id", "sensor", "read_at").is_duplicated().mean() < 0.01


def test_some_readings_are_impossible_or_in_another_unit(simulated):
    readings = frame(simulated.readings)
    assert 0 < readings["value"].is_in([-999.0, 9_999.0]).mean() < 0.001
    fahrenheit = readings.filter(pl.col("unit") == "degF")["value"]
    assert len(fahrenheit) > 10
    assert fahrenheit.is_between(100, 180).all()


def read_topic(folder):
    reader = event_log.Reader(folder, "readings", 0, 0)
    found = []
    while slices := reader.read():
        found += event_log.events_of("readings", slices)
    reader.close()
    return found


def test_the_database_and_the_stream_hold_the_plant(tmp_path):
    added = fill(tmp_path / "plant.sqlite", tmp_path / "stream", SMALL)
    expected = simulate(SMALL)
    found = read_topic(tmp_path / "stream")
    assert added["readings"] == len(found) == expected.readings.num_rows
    first, values = frame(expected.readings).row(0, named=True), json.loads(found[0].value)
    assert values == {
        "machine_id": first["machine_id"],
        "read_at": first["read_at"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sensor": first["sensor"],
        "value": first["value"],
        "unit": first["unit"],
    }
    assert found[0].key == first["machine_id"].encode()
    with closing(sqlite3.connect(tmp_path / "plant.sqlite")) as database:
        for table, rows in expected.tables.items():
            assert added[table] == rows.num_rows
            ((count,),) = database.execute(f"select count(*) from {table}").fetchall()
            assert count == rows.num_rows
        ((commissioned,),) = database.execute("select distinct commissioned_at from machines")
    assert commissioned == "2025-01-01 00:00:00"


def test_a_second_fill_adds_nothing_and_a_broken_off_one_is_completed(tmp_path, monkeypatch):
    whole = fill(tmp_path / "whole.sqlite", tmp_path / "whole", SMALL)
    monkeypatch.setattr(events, "EVENTS_AT_ONCE", 1_000)

    def break_off(message):
        if "2,000" in message:
            raise KeyboardInterrupt

    database, stream = tmp_path / "plant.sqlite", tmp_path / "stream"
    with pytest.raises(KeyboardInterrupt):
        fill(database, stream, SMALL, progress=break_off)
    assert not database.exists()
    rest = fill(database, stream, SMALL)
    assert 0 < rest["readings"] < whole["readings"]
    assert read_topic(stream) == read_topic(tmp_path / "whole")
    assert set(fill(database, stream, SMALL).values()) == {0}


@pytest.mark.parametrize("thing", ["plant.sqlite", "stream"])
def test_what_cannot_be_written_is_named(tmp_path, thing):
    blocked = tmp_path / "a file where the folder should be"
    blocked.touch()
    places = {"plant.sqlite": tmp_path / "plant.sqlite", "stream": tmp_path / "stream"}
    places[thing] = blocked / thing
    with pytest.raises(MendableError, match=thing):
        fill(*places.values(), SMALL)


def test_a_file_that_is_no_database_is_replaced(tmp_path):
    (tmp_path / "plant.sqlite").write_text("not a database, but a text of some length" * 9)
    assert fill(tmp_path / "plant.sqlite", tmp_path / "stream", SMALL)["machines"] == 2
    assert plant.readings_in(tmp_path / "stream")
