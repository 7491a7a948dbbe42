"""Training outside the schedule: what calls for it, and whether cool-down and budget allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchestration.layers import USE_CASES
from orchestration.registry import decisions
from orchestration.settings import Settings
from orchestration.warehouse.frames import read_frame, table_exists

if TYPE_CHECKING:
    import duckdb

QUARTER = timedelta(days=90)


@dataclass(frozen=True)
class Finding:
    """Something open that may call for training: its key, its kind (`drift`, `decay`), and what it says."""

    key: str
    kind: str
    message: str


@dataclass(frozen=True)
class Policy:
    """A row of `seeds/retraining_policy.csv`."""

    triggers: frozenset[str]
    cool_down: timedelta
    budget: int


def policy_of(row: Mapping[str, Any]) -> Policy:
    """The policy of a row of the seed."""
    return Policy(
        frozenset(one.strip() for one in str(row["triggers"]).split(",")),
        timedelta(days=int(row["cool_down_days"])),
        int(row["budget_per_quarter"]),
    )


def judge(
    policy: Policy, findings: Sequence[Finding], requested_at: Sequence[datetime], now: datetime
) -> tuple[decisions.Action | None, str]:
    """Whether to train, and why; no action if nothing calls for it.

    Args:
        policy: the use case's.
        findings: what is open.
        requested_at: when training was requested before, naive UTC.
        now: naive UTC.
    """
    called = [one for one in findings if one.kind in policy.triggers]
    if not called:
        return None, "nothing calls for it"
    why = "; ".join(f"{one.key}: {one.message}" for one in called[:5])
    last = max(requested_at, default=None)
    if last is not None and now - last < policy.cool_down:
        return "retraining_refused", (
            f"{why}; not yet: requested last {(now - last).days} days ago, the cool-down is"
            f" {policy.cool_down.days}"
        )
    recent = sum(now - at < QUARTER for at in requested_at)
    if recent >= policy.budget:
        return "retraining_refused", (
            f"{why}; not again: {recent} requests in 90 days are the budget; somebody should look"
        )
    return "retraining_requested", why


def requests(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> dict[str, str]:
    """Decide for each use case, write it down, and say which to train: use case to reason.

    What was refused on the same grounds as last time is not written again.
    """
    if not table_exists(connection, "seeds", "retraining_policy"):
        return {}
    rows = read_frame(connection, "from seeds.retraining_policy").iter_rows(named=True)
    policies = {row["use_case"]: policy_of(row) for row in rows}
    wanted = {}
    for use_case in USE_CASES:
        if use_case not in policies:
            continue
        before = [
            one
            for one in decisions.read(connection, use_case)
            if one.action.startswith("retraining")
        ]
        asked = [one.as_of_at for one in before if one.action == "retraining_requested"]
        findings = open_findings(connection, use_case)
        action, why = judge(policies[use_case], findings, asked, now)
        if action is None:
            continue
        keys = sorted(one.key for one in findings if one.kind in policies[use_case].triggers)
        told = [one["finding"] for one in before[-1].metrics] if before else []
        if action == "retraining_refused" == (before[-1].action if before else "") and told == keys:
            continue
        now_in_force = decisions.decided(decisions.read(connection, use_case)).get("")
        champion = now_in_force.champion_after if now_in_force else ""
        decisions.write(
            connection, settings, use_case,
            [
                decisions.Decision(
                    "", action, "", now, champion, champion, why, "sensor",
                    [{"finding": key} for key in keys],
                )
            ],
        )  # fmt: skip
        if action == "retraining_requested":
            wanted[use_case] = why
    return wanted


def open_findings(connection: duckdb.DuckDBPyConnection, use_case: str) -> list[Finding]:
    """What the monitoring has found and is still so: alerts of drift and decay, and metrics that decay.

    A metric decays if its newest two values miss its target: one alone may be chance.
    """
    found = []
    if table_exists(connection, "monitoring", "alerts"):
        found += connection.execute(
            "select alert_key, kind, what_happened from monitoring.alerts"
            " where use_case = ? and kind in ('drift', 'decay') and closed_at is null order by alert_key",
            [use_case],
        ).fetchall()
    if table_exists(connection, "monitoring", table := f"mon_{use_case}__metrics"):
        found += connection.execute(
            f"""
            select '{use_case}.' || metric, 'decay',
                metric || ' missed its target twice in a row, last on ' || max(as_of_at)::date
            from (
                select *, row_number() over (partition by metric order by as_of_at desc) as place
                from monitoring.{table}
            )
            where place <= 2 group by metric having count(*) = 2 and not bool_or(is_met) order by metric
            """
        ).fetchall()
    return [Finding(*row) for row in found]
