"""Who takes the champion's place: only who is better for sure, by every rule, without harm to a group."""

from __future__ import annotations

import numpy as np
import pytest

from orchestration.errors import MendableError
from orchestration.learning.promotion import (
    Pair,
    Rule,
    Trial,
    attempt,
    decide,
    gain_interval,
    read_rules,
    rules_of,
)
from orchestration.settings import PROJECT_ROOT

RULES = [
    Rule("precision", "technical", 0.0, 0.95, "at_least"),
    Rule("cost", "business", -10.0, 0.95, "at_most"),
    Rule("by_band", "fairness", 0.1, 0.95, "at_least"),
    Rule("ms", "latency", 5.0, 0.95, "at_most"),
]


def trial(gain=0.1, spread=0.02, cost=0.0, band=0.0, ms=1.0, blocks=20, **other) -> Trial:
    noise = np.random.default_rng(1).normal(0, spread, blocks)
    base = np.full(blocks, 0.5)
    return Trial(
        metrics={
            "precision": Pair(base + gain + noise, base),
            "cost": Pair(base + cost + noise, base),
        },
        groups={"by_band": {"low": Pair(base + band, base), "rare": Pair(base[:2], base[:2])}},
        latency={"ms": ms},
        **other,
    )


def test_a_challenger_that_is_better_for_sure_takes_over():
    verdict = decide(trial(), RULES)
    assert verdict.promoted
    assert verdict.reason.startswith("precision 0.6")
    assert [line.kind for line in verdict.lines] == [
        "technical", "business", "fairness", "fairness", "latency",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("worse", "because"),
    [
        ({"gain": 0.01, "spread": 0.2}, "precision"),  # better, but it may be chance
        ({"gain": -0.1}, "precision"),
        ({"cost": 30.0}, "cost"),
        ({"band": -0.2}, "by_band (low)"),
        ({"ms": 6.0}, "ms 6"),
        ({"blocks": 3}, "3 blocks"),
        ({"broken": ["score: in_range(0, 1)"]}, "contract"),
    ],
)
def test_one_broken_rule_is_enough_to_refuse(worse, because):
    verdict = decide(trial(**worse), RULES)
    assert not verdict.promoted
    assert because in verdict.reason


def test_a_loss_within_a_negative_margin_is_put_up_with():
    assert decide(trial(cost=5.0), RULES).promoted


def test_a_first_model_must_be_better_than_the_rule_on_average_only():
    assert decide(trial(gain=0.05, spread=0.1, is_first=True), RULES).promoted
    assert not decide(trial(gain=-0.1, is_first=True), RULES).promoted


def test_a_rule_that_the_trial_does_not_measure_is_not_taken_for_kept():
    rules = [*RULES, Rule("unheard_of", "technical", 0.0, 0.95, "at_least")]
    assert not decide(trial(), rules).promoted


def test_a_challenger_that_crashes_is_refused_and_the_crash_goes_no_further():
    def crash() -> Trial:
        raise RuntimeError("a secret value")

    verdict = attempt(crash, RULES)
    assert not verdict.promoted
    assert "crashed" in verdict.reason
    assert "secret" not in verdict.reason


@pytest.mark.parametrize("blocks", [7, 20])
def test_of_models_that_are_equal_at_most_one_in_fifteen_seems_better(blocks):
    random = np.random.default_rng(7)
    wins = sum(
        gain_interval(random.normal(0, 1, blocks), 0.95)[1] > 0 for _ in range(600)
    )  # the promised 5 % and what chance adds to it
    assert wins / 600 <= 0.067


def test_the_rules_in_the_seed_are_understood_and_a_wrong_one_is_named():
    for use_case in ("fraud_detection", "predictive_maintenance", "customer_segmentation"):
        kinds = {
            one.kind for one in read_rules(PROJECT_ROOT / "seeds/promotion_rules.csv", use_case)
        }
        assert {"technical", "business"} <= kinds
    with pytest.raises(MendableError, match="no_use_case"):
        rules_of([], "no_use_case")
    with pytest.raises(MendableError, match="confidence"):
        Rule("precision", "technical", 0.0, 1.5, "at_least")
