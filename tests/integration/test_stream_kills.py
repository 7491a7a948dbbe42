"""The scorers killed again and again, with landing behind and ahead of them: nothing lost, nothing changed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from orchestration.demo.plant import simulate
from orchestration.settings import load_settings
from tests.unit.streaming import maintenance_house
from tests.unit.streaming.fraud_house import Payments, history

ROOT = Path(__file__).resolve().parents[2]
EVENTS, KILLS = 8_000, 4


def kill_and_land(stream, topic, house, landings, draw, every):
    """Kill the scorer up to `KILLS` times, each at some moment after it published; what it had published by each.

    Once it has published `every` message there is nothing left to wait for.
    """
    environment = {**os.environ, "WATERSHED_DATA_DIR": str(stream.settings.data_dir)}
    published = []
    for _ in range(KILLS):
        before, deadline = stream.end(topic), time.monotonic() + 60
        if before >= every:
            break
        scorer = subprocess.Popen([sys.executable, "-m", house], env=environment, cwd=ROOT)
        while stream.end(topic) == before:  # it has begun: any moment from now on
            assert scorer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.random() * 0.03)
        scorer.kill()
        scorer.wait()
        published.append(stream.end(topic))
        stream.land(*draw.choice(landings))
    return published


def test_a_scorer_that_is_killed_at_any_moment_loses_nothing_and_changes_no_score(tmp_path):
    draw, events = random.Random(4), history(4, EVENTS)
    whole = Payments(load_settings(data_dir=tmp_path / "whole"))
    stream = Payments(load_settings(data_dir=tmp_path / "killed"))
    for one in (whole, stream):
        one.put(events)
    whole.score()
    landings = (("payments", "fraud_reports"), ("scores",), ("payments",))
    published = kill_and_land(
        stream, "scores", "tests.unit.streaming.fraud_house", landings, draw, EVENTS
    )
    stream.score()
    assert published[0] < EVENTS  # a kill did cut it short
    assert stream.last_scores() == whole.last_scores()
    decided, alerts = stream.decisions()
    assert set(decided) == set(range(EVENTS))
    assert max(alerts.values()) <= 2  # at least once, under one id


def test_the_machines_scorer_killed_at_any_moment_leaves_out_no_hour_and_no_warning(tmp_path):
    draw, simulated = random.Random(5), simulate(maintenance_house.WORLD)
    plant, events = maintenance_house.known_of(simulated), maintenance_house.readings_of(simulated)
    whole = maintenance_house.Machines(load_settings(data_dir=tmp_path / "whole"), plant)
    stream = maintenance_house.Machines(load_settings(data_dir=tmp_path / "killed"), plant)
    for one in (whole, stream):
        one.put(events)
    whole.score()
    landings = (("readings",), ("machine_health", "warnings"), ("readings", "sensor_features"))
    topic = "machine_health"
    every = whole.end(topic)
    published = kill_and_land(stream, topic, maintenance_house.__name__, landings, draw, every)
    stream.score()
    assert published[0] < whole.end(topic)  # a kill did cut it short
    assert stream.said() == whole.said()
    assert whole.said()["warnings"]
