"""A warning opens on several high scores, closes on several low ones, and never flaps between."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.errors import MendableError
from orchestration.learning.warning_states import GAP, Standing, read_policy, reset, step
from orchestration.settings import PROJECT_ROOT
from tests.unit.learning.machines import POLICY

NOON = datetime(2025, 3, 1, 12)
HOUR = timedelta(hours=1)


def walk(scores, *, threshold=0.5, hours=1, standing=None):
    """(hour, change) of each change, and the last standing."""
    standing, changes = standing or Standing(), []
    for number, score in enumerate(scores):
        standing, change = step(
            standing, "pump_7", NOON + number * hours * HOUR, score, threshold, POLICY
        )
        if change:
            changes.append((number, change))
    return changes, standing


def test_two_high_scores_open_and_six_low_ones_close():
    changes, standing = walk([0.5, 0.6, 0.7, *[0.1] * 6])
    assert changes == [(1, "opened"), (8, "closed")]
    assert standing.warning_id == ""


def test_a_warning_is_named_after_its_machine_and_the_hour_it_opened():
    _, standing = walk([0.9, 0.9, 0.9])
    assert standing.warning_id == "pump_7@2025-03-01T13"


def test_one_high_score_alone_opens_nothing_and_one_in_between_keeps_a_warning_open():
    assert walk([0.9, 0.1] * 10)[0] == []
    assert walk([0.9, 0.9, *([0.1] * 5 + [0.3]) * 4])[0] == [(1, "opened")]


def test_a_gap_resets_the_counts_but_not_the_warning():
    day = int(GAP / HOUR)
    assert walk([0.9] * 5, hours=day)[0] == [(1, "opened")]
    assert walk([0.9] * 5, hours=day + 1)[0] == []
    _, standing = walk([0.9, 0.9])
    changes, later = walk([0.1] * 20, hours=day + 1, standing=standing)
    assert changes == []
    assert later.warning_id == standing.warning_id


def test_maintenance_closes_a_warning_and_begins_anew():
    _, standing = walk([0.9, 0.9])
    assert reset(standing) == (Standing(), "closed")
    _, standing = walk([0.9])
    assert reset(standing) == (Standing(), None)


@given(st.lists(st.sampled_from([0.0, 0.2, 0.249, 0.25, 0.4, 0.5, 0.9, float("nan")]), max_size=80))
def test_a_warning_never_flaps(scores):
    changes, _ = walk(scores)
    kinds = [change for _, change in changes]
    assert kinds == (["opened", "closed"] * len(kinds))[: len(kinds)]  # in turns
    least = {"opened": POLICY.close_after_scores, "closed": POLICY.open_after_scores}
    for (at, change), (then, _) in pairwise(changes):
        assert then - at >= least[change]
    for at, change in changes:  # only ever on a run of scores that ask for it
        if change == "opened":
            assert all(s >= 0.5 for s in scores[at - 1 : at + 1])
        else:
            assert all(s < 0.25 for s in scores[at - 5 : at + 1])


def test_the_policy_that_is_shipped_can_be_read():
    policy = read_policy(PROJECT_ROOT / "seeds" / "maintenance_policy.csv")
    assert policy.horizon_hours == 48
    assert policy.avoided_cost == 12 * policy.downtime_cost_per_hour


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: "", "0 rows"),
        (lambda text: text + text.splitlines()[1] + "\n", "2 rows"),
        (lambda text: text.replace("48,", "soon,", 1), "invalid literal"),
        (lambda text: text.replace("48,", "-1,", 1), "horizon_hours"),
        (lambda text: text.replace("callout_cost", "visit_cost", 1), "callout_cost"),
    ],
)
def test_a_policy_that_cannot_be_followed_says_what_is_wrong(tmp_path, change, expected):
    path = tmp_path / "maintenance_policy.csv"
    path.write_text(change((PROJECT_ROOT / "seeds" / "maintenance_policy.csv").read_text()))
    with pytest.raises(MendableError, match=expected):
        read_policy(path)


def test_a_missing_policy_says_so(tmp_path):
    with pytest.raises(MendableError, match="FileNotFoundError"):
        read_policy(tmp_path / "maintenance_policy.csv")
