"""Predictive maintenance from the plant to warnings and metrics, on ten machines and two months."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import polars as pl
import pytest

from orchestration.connectors.event_log import Producer
from orchestration.demo.plant import Plant, simulate
from tests.integration.small_house import BIN, PLANT, ROOT

HORIZON = timedelta(hours=48)


@pytest.fixture(scope="module")
def simulated() -> Plant:
    return simulate(PLANT)


def frame(table) -> pl.DataFrame:
    return pl.from_arrow(table).with_columns(pl.col(pl.Categorical).cast(pl.String))


def test_every_reading_is_there_once_as_it_first_arrived(house, simulated):
    assert house.first.returncode == 0, house.first.stdout + house.first.stderr
    columns = ["machine_id", "sensor", "read_at", "value", "unit"]
    expected = frame(simulated.readings).unique(columns[:3], keep="first", maintain_order=True)
    assert 0 < len(expected) < simulated.readings.num_rows  # some came twice
    staged = house.rows(f"select {', '.join(columns)} from staging.stg_plant_stream__readings")
    assert sorted(staged) == sorted(expected.select(columns).rows())


def test_late_readings_are_those_that_a_later_one_overtook(house, simulated):
    arrived = frame(simulated.readings).unique(
        ["machine_id", "sensor", "read_at"], keep="first", maintain_order=True
    )
    late = arrived.filter(
        pl.col("read_at") < pl.col("read_at").cum_max().over("machine_id", "sensor")
    )
    assert len(late) > 50
    staged = house.rows(
        "select machine_id, sensor, read_at from staging.stg_plant_stream__readings where is_late"
    )
    assert sorted(staged) == sorted(late.select("machine_id", "sensor", "read_at").rows())


def test_every_accepted_or_rejected_reading_stands_in_its_hour(house):
    ((staged, accepted, rejected),) = house.rows(
        "select (select count(*) from staging.stg_plant_stream__readings),"
        " sum(readings_count), sum(rejected_count) from intermediate.int_readings__hourly"
    )
    assert staged == accepted + rejected
    ((impossible,),) = house.rows(
        "select count(*) from staging.stg_plant_stream__readings where value in (-999, 9999)"
    )
    assert rejected == impossible > 0


def test_an_episode_ends_at_every_failure_and_begins_at_every_repair(house, simulated):
    failures, upkeep = (frame(simulated.tables[name]) for name in ("failures", "maintenance"))
    renewals = upkeep.filter(pl.col("kind") != "recalibration")
    episodes = house.rows("from intermediate.int_machine_episodes__started")
    assert len(episodes) == PLANT.machines + len(renewals)
    ended = house.rows(
        "select machine_id, ended_at from intermediate.int_machine_episodes__started"
        " where ended_by = 'failure'"
    )
    assert sorted(ended) == sorted(failures.select("machine_id", "failed_at").rows())


def test_a_label_says_whether_the_machine_failed_within_the_horizon(house, simulated):
    failures = frame(simulated.tables["failures"])
    ends = {machine: at["failed_at"].sort() for (machine,), at in failures.group_by("machine_id")}
    labelled = house.rows(
        "select distinct machine_id, as_of_at, label, remaining_hours, is_censored"
        " from training_sets.train_predictive_maintenance"
    )
    assert sum(label is True for _, _, label, *_ in labelled) > 500
    assert sum(label is None for _, _, label, *_ in labelled) > 0
    for machine, as_of_at, label, remaining, is_censored in labelled:
        following = [at for at in ends[machine] if at >= as_of_at]
        fails = bool(following) and following[0] - as_of_at <= HORIZON
        if label is not None:
            assert label == fails, (machine, as_of_at)
        if not is_censored:
            assert following[0] - as_of_at == timedelta(hours=remaining)


def test_features_are_there_for_every_machine_hour_and_silence_is_one_of_them(house):
    ((machine_hours, with_features),) = house.rows(
        "select (select count(*) from intermediate.int_machine_hours__conditioned),"
        " (select count(distinct (machine_id, as_of_at)) from features.feat_sensor__windows)"
    )
    assert machine_hours == with_features > 10_000
    ((silent, stuck, late, rejected),) = house.rows(
        "select count(*) filter (where readings_count_6h = 0), count(*) filter (where is_stuck),"
        " sum(late_count_24h), sum(rejected_count_24h) from features.feat_sensor__windows"
    )
    assert min(silent, stuck, late, rejected) > 0


def test_the_months_champion_tells_more_than_an_average_does(house):
    models = house.rows(
        "select algorithm, is_champion, training_failures from trained_models.predictive_maintenance"
        " where as_of_at = timestamp '2025-02-01' order by algorithm"
    )
    assert [algorithm for algorithm, *_ in models] == ["baseline", "lightgbm"]
    assert sum(is_champion for _, is_champion, _ in models) == 1
    assert all(failures >= 10 for *_, failures in models)
    ((error, spread, base_rate, precision),) = house.rows(
        """
        select
            sqrt(avg(power(remaining_hours - least(observed_remaining_hours, 125), 2))
                filter (where not is_censored)),
            stddev_pop(least(observed_remaining_hours, 125)) filter (where not is_censored),
            avg(cast(label as int)),
            (select average_precision from trained_models.predictive_maintenance
                where is_champion and as_of_at = timestamp '2025-02-01')
        from predictions.maintenance_backtest
        where is_champion and as_of_at < timestamp '2025-03-01'
        """
    )
    assert error < 0.85 * spread
    assert precision > 2 * base_rate
    assert house.rows(
        "select count(*) from predictions.maintenance_backtest"
        " where failure_probability not between 0 and 1 or remaining_hours < remaining_hours_low"
        " or remaining_hours > remaining_hours_high"
    ) == [(0,)]


def test_a_warning_opens_before_most_failures_and_names_sensors(house, simulated):
    february = [
        at for at in simulated.tables["failures"]["failed_at"].to_pylist()
        if datetime(2025, 2, 1) <= at < datetime(2025, 3, 1)
    ]  # fmt: skip
    rows = house.rows(
        "select failed_at, is_warned from monitoring.mon_predictive_maintenance__failures"
    )
    assert [at for at, _ in sorted(rows)] == sorted(february)
    assert sum(warned for _, warned in rows) >= len(rows) / 2
    reasons = house.rows("select reasons from predictions.warning_backtest where is_champion")
    assert reasons
    names = {sensor.name for model in PLANT.models for sensor in model.sensors}
    assert sum(any(name in text for name in names) for (text,) in reasons) >= len(reasons) / 2


def test_every_target_is_measured(house):
    measured = house.rows(
        "select metric from monitoring.mon_predictive_maintenance__metrics where value is not null"
    )
    targets = house.rows(
        "select metric from seeds.metric_targets where use_case = 'predictive_maintenance'"
    )
    of_the_stream = {"parity_mismatches", "score_latency_p99_ms"}  # measured once it has scored
    assert {metric for (metric,) in targets} - of_the_stream <= {m for (m,) in measured}


def test_the_end_table_counts_the_machines(house, simulated):
    (line,) = (line for line in house.first.stdout.splitlines() if line.startswith("machines"))
    assert str(PLANT.machines) in line.split()
    assert str(simulated.tables["failures"].num_rows) in line.split()


def test_readings_that_cannot_be_are_flagged_and_change_no_feature(house, monkeypatch):
    columns = "machine_id, as_of_at, sensor, readings_count_24h, value_avg_24h, deviation_avg_24h"
    features = f"select {columns} from features.feat_sensor__windows order by all"
    before = house.rows(features)
    (machine, read_at, sensor, value, unit), *_ = house.rows(
        "select machine_id, read_at, sensor, value, unit from staging.stg_plant_stream__readings"
        " order by read_at desc, sensor limit 1"
    )
    event = {
        "machine_id": machine,
        "read_at": f"{read_at:%Y-%m-%dT%H:%M:%SZ}",
        "sensor": sensor,
        "value": value,
        "unit": unit,
    }
    soon = f"{read_at + timedelta(seconds=7):%Y-%m-%dT%H:%M:%SZ}"
    landed = [
        event,  # comes twice
        event | {"value": value + 1},  # in conflict with what came first
        event | {"machine_id": "nobody's"},
        event | {"read_at": soon, "sensor": "unheard_of"},
        event | {"read_at": soon, "unit": "furlong"},
        event | {"read_at": soon, "value": -1e6},
        event | {"read_at": f"{read_at + timedelta(days=400):%Y-%m-%dT%H:%M:%SZ}"},
    ]
    set_aside = [
        b'{"machine_id": "m", ',
        json.dumps(event | {"value": None}).encode(),
        json.dumps(event | {"value": 1e300}).encode(),
        json.dumps(event | {"read_at": "1970-01-01T00:00:00Z"}).encode(),
        json.dumps(event | {"machine_id": ""}).encode(),
    ]
    with Producer(house.readings, "readings") as producer:
        producer.append_batch([*(json.dumps(e).encode() for e in landed), *set_aside])
    house.materialize("raw/plant_stream__readings", monkeypatch)
    built = house.run(
        BIN / "dbt", "build", "--exclude-resource-type", "unit_test", "--indirect-selection",
        "cautious", "--select", "stg_plant_stream__readings int_readings__hourly"
        " int_machine_hours__conditioned feat_sensor__windows mon_plant_readings__flagged",
        cwd=ROOT / "dbt_project",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    assert house.rows("select count(*) from quarantine.plant_stream__readings") == [
        (len(set_aside),)
    ]
    assert house.rows(features) == before
    flagged = dict(
        house.rows(
            "select reason, sum(readings_count) from monitoring.mon_plant_readings__flagged group by 1"
        )
    )
    assert len([count for count in flagged.values() if count]) >= 7, flagged


def test_the_stream_says_of_every_hour_what_the_sql_says(house, monkeypatch):
    from orchestration.connectors.event_log import watermarks
    from orchestration.streaming import maintenance_state
    from orchestration.streaming.engine import run
    from orchestration.streaming.maintenance_scoring import TOPICS, stream_topic
    from orchestration.streaming.publisher import open_publisher
    from orchestration.streaming.serve import SERVED

    end = watermarks(house.readings, "readings", 0)[1]
    begin = {0: end - 25_000}  # where a first start would have begun some weeks ago
    monkeypatch.setattr(maintenance_state.Snapshot, "last_day", lambda snapshot: begin)
    said: list[str] = []
    with (
        open_publisher(stream_topic(house.settings, "readings")) as publisher,
        SERVED["machines"].opened(house.settings, said.append) as use_case,
    ):
        publisher.create(dict.fromkeys(TOPICS, 1))
        asked = iter(range(400))  # some twenty times a second, and once per batch
        done = run(use_case, publisher, stop=lambda: next(asked, None) is None, say=said.append)
    assert done.scored > 24_000
    assert any("scoring with predictive_maintenance-mixer-2025-" in line for line in said)
    for table in ("readings", "sensor_features", "machine_health", "warnings"):
        house.materialize(f"raw/plant_stream__{table}", monkeypatch)
    built = house.run(
        BIN / "dbt", "build", "--exclude-resource-type", "unit_test", "--indirect-selection",
        "cautious", "--select", "staging.plant_stream machine_health machine_warnings"
        " mon_predictive_maintenance__parity",
        cwd=ROOT / "dbt_project",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    ((scored, unknown, differing, mismatches),) = house.rows(
        "select sum(sensor_hours_count), sum(unknown_count), sum(differs_in_readings_count),"
        " sum(mismatches_count) from monitoring.mon_predictive_maintenance__parity"
    )
    assert (unknown, mismatches) == (0, 0)
    assert scored > 10_000
    assert differing < scored / 10  # what came late
    machine = house.rows(
        "select count(*) filter (where h.readings_count_24h <> f.readings_count_24h), count(*)"
        " from predictions.machine_health as h"
        " join features.feat_machine__history as f using (machine_id, as_of_at, episode_number)"
    )
    assert machine[0][0] < machine[0][1] / 10
    ((warnings,),) = house.rows("select count(*) from predictions.machine_warnings")
    assert warnings == done.alerts > 0
