"""The scorer killed again and again, with landing behind it and ahead of it: no payment lost, no score changed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1] / "unit" / "streaming"
sys.path.insert(0, str(HOUSE))

from fraud_house import Stream, history  # noqa: E402

from orchestration.settings import load_settings  # noqa: E402

EVENTS, KILLS = 8_000, 4


def last_of(settings, events):
    stream = Stream(settings)
    stream.put(events)
    stream.score()
    return stream.last_scores()


def test_a_scorer_that_is_killed_at_any_moment_loses_nothing_and_changes_no_score(tmp_path):
    draw = random.Random(4)
    events = history(4, EVENTS)
    whole = last_of(load_settings(data_dir=tmp_path / "whole"), events)
    settings = load_settings(data_dir=tmp_path / "killed")
    stream = Stream(settings)
    environment = {**os.environ, "WATERSHED_DATA_DIR": str(settings.data_dir)}
    stream.put(events)
    published = []
    for _ in range(KILLS):
        before, deadline = stream.end("scores"), time.monotonic() + 60
        scorer = subprocess.Popen([sys.executable, HOUSE / "fraud_house.py"], env=environment)
        while stream.end("scores") == before:  # it has begun: any moment from now on
            assert scorer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        scorer.kill()
        scorer.wait()
        published.append(stream.end("scores"))
        stream.land(*draw.choice((("payments", "fraud_reports"), ("scores",), ("payments",))))
    stream.score()
    assert published[0] < EVENTS  # a kill did cut it short
    assert stream.last_scores() == whole
    decided, alerts = stream.decisions()
    assert set(decided) == set(range(EVENTS))
    assert max(alerts.values()) <= 2  # at least once, under one id
