"""Trials measure challenger and champion also by group: who gains on some at the cost of others is refused."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from orchestration.learning.machine_health import Health
from orchestration.learning.predictive_maintenance import hours_of
from orchestration.learning.promotion import decide, read_rules
from orchestration.learning.trials import WEAR, machine_trial
from orchestration.settings import PROJECT_ROOT
from tests.unit.learning.machines import POLICY, START, training_frame

RULES = read_rules(PROJECT_ROOT / "seeds" / "promotion_rules.csv", "predictive_maintenance")


class Simple:
    """A model of two inputs: how far the vibration is off, and the hours since the repair."""

    inputs = (("vibration_mm_s", "deviation_distance_24h"), ("", "episode_hours"))
    warning_threshold = 0.5

    def __init__(self, probability):
        self.probability = probability

    def score(self, matrix):
        probability = np.asarray(self.probability(*matrix.T), np.float64)
        hours = np.full(len(probability), 30.0)
        return Health(probability, hours, hours, hours)


def by_vibration(off, run):
    return np.where(off > 5, 0.8, 0.02)


def test_a_challenger_that_gains_on_worn_machines_at_the_cost_of_repaired_ones_is_refused():
    hours = hours_of(training_frame(machines=20))
    hours = hours.between(START, START + timedelta(days=31))
    champion = Simple(lambda off, run: np.full(len(off), 0.3))
    better = machine_trial(Simple(by_vibration), champion, hours, POLICY)
    assert set(better.groups["brier_score_by_wear"]) == set(WEAR)
    assert decide(better, RULES).promoted

    def unfair(off, run):
        return np.where(run < 20, 0.45, by_vibration(off, run))

    verdict = decide(machine_trial(Simple(unfair), champion, hours, POLICY), RULES)
    assert not verdict.promoted
    assert verdict.reason.startswith(f"brier_score_by_wear ({WEAR[0]})")
    assert ";" not in verdict.reason  # better by every other rule
