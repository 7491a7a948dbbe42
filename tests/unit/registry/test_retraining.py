"""Drift and decay call for training; cool-down and budget say when not; every decision is a row, once."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from orchestration.registry import decisions
from orchestration.registry.retraining import Finding, Policy, judge, requests
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import replace_part

NOW = datetime(2018, 9, 3)
POLICY = Policy(frozenset({"drift", "decay"}), timedelta(days=7), 2)
DRIFT = Finding("fraud.amount", "drift", "amounts have doubled")


@pytest.mark.parametrize(
    ("findings", "days_ago", "action"),
    [
        ([], [], None),
        ([Finding("x", "freshness", "late")], [], None),
        ([DRIFT], [], "retraining_requested"),
        ([DRIFT], [6], "retraining_refused"),
        ([DRIFT], [8], "retraining_requested"),
        ([DRIFT], [8, 20], "retraining_refused"),
        ([DRIFT], [100, 120, 8], "retraining_requested"),
    ],
)
def test_what_calls_for_training_is_held_against_cool_down_and_budget(findings, days_ago, action):
    asked = [NOW - timedelta(days=days) for days in days_ago]
    assert judge(POLICY, findings, asked, NOW)[0] == action


def test_a_request_is_a_row_and_the_same_refusal_is_not_told_twice(settings):
    with connect(settings) as connection:
        policy = pl.DataFrame(
            {
                "use_case": ["fraud_detection"],
                "triggers": ["drift,decay"],
                "cool_down_days": [7],
                "budget_per_quarter": [6],
            }
        )
        alerts = pl.DataFrame(
            {
                "alert_key": ["fraud.amount"],
                "use_case": ["fraud_detection"],
                "kind": ["drift"],
                "what_happened": ["amounts have doubled"],
                "closed_at": pl.Series([None], dtype=pl.Datetime("us")),
            }
        )
        for name, frame, key in (
            ("seeds.retraining_policy", policy, "use_case"),
            ("monitoring.alerts", alerts, "alert_key"),
        ):
            replace_part(connection, settings, {name: frame}, where=key, equals="")
        asked = [
            set(requests(connection, settings, NOW + timedelta(days=days))) for days in range(9)
        ]
        told = decisions.read(connection, "fraud_detection")
    assert [day for day, wanted in enumerate(asked) if wanted] == [0, 7]
    assert [one.action for one in told] == [
        "retraining_requested", "retraining_refused", "retraining_requested", "retraining_refused",
    ]  # fmt: skip
    assert told[0].decided_by == "sensor"
    assert "amounts have doubled" in told[0].reason
