"""When a machine's warning opens and closes: the same steps for the backtest and for the stream."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from orchestration.errors import MendableError

Change = Literal["opened", "closed"]
GAP: Final = timedelta(hours=24)
"""Scores further apart than this are not consecutive."""


@dataclass(frozen=True)
class Policy:
    """The one row of `seeds/maintenance_policy.csv`.

    Attributes:
        horizon_hours: a label is true if the machine fails within these.
        remaining_cap_hours: remaining life above it counts as this much: a new machine shows no wear.
        baseline_hours: the first hours of an episode, in which a machine counts as healthy.
        reference_machine_hours: healthy machine-hours from which a sensor's reference is taken.
        open_after_scores: consecutive scores at or above the threshold that open a warning.
        close_after_scores: consecutive scores below half the threshold that close it.
        callout_cost: of looking at a machine once.
        downtime_cost_per_hour: of a machine that stands still.
        unplanned_downtime_hours: after a failure.
        planned_downtime_hours: for a repair ahead of it.
    """

    horizon_hours: int
    remaining_cap_hours: int
    baseline_hours: int
    reference_machine_hours: int
    open_after_scores: int
    close_after_scores: int
    callout_cost: float
    downtime_cost_per_hour: float
    unplanned_downtime_hours: float
    planned_downtime_hours: float

    def __post_init__(self) -> None:
        """Refuse what no plant can mean."""
        for name in (field.name for field in fields(self)):
            least = 0 if name in ("callout_cost", "planned_downtime_hours") else 1e-9
            if not getattr(self, name) >= least:
                raise MendableError(
                    f"maintenance_policy.{name}",
                    expected="a number above 0" if least else "a number from 0",
                    arrived=f"{getattr(self, name)}",
                    mend="correct seeds/maintenance_policy.csv",
                )

    @property
    def avoided_cost(self) -> float:
        """What a failure costs more than the same repair planned ahead of it."""
        hours = self.unplanned_downtime_hours - self.planned_downtime_hours
        return hours * self.downtime_cost_per_hour


def read_policy(path: Path) -> Policy:
    """The policy in a seed file; columns that are not the policy's (owner, reason) are left.

    Raises:
        MendableError: the file is missing, has not one row, or a number is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if len(rows) != 1:
            raise ValueError(f"{len(rows)} rows")
        return policy_of(rows[0].items())
    except (OSError, ValueError, KeyError) as error:
        raise MendableError(
            f"seeds/{path.name}",
            expected=f"one row with the numbers {', '.join(f.name for f in fields(Policy))}",
            arrived=f"{type(error).__name__}: {error}",
            mend=f"put seeds/{path.name} right",
        ) from None


def policy_of(columns: Iterable[tuple[str, object]]) -> Policy:
    """The policy of one row, column by column, from the seed file or the warehouse's table of it.

    Raises:
        KeyError: a column is missing.
        ValueError: a number is none.
    """
    row = dict(columns)
    numbers: dict[str, Any] = {
        field.name: (int if field.type == "int" else float)(str(row[field.name]))
        for field in fields(Policy)
    }
    return Policy(**numbers)


class Standing(NamedTuple):
    """Where a machine stands between two scores.

    `above` and `below` count the consecutive scores at or above the threshold, and below half of it;
    `warning_id` is the open warning's, or empty; `scored_at` is the last score's `as_of_at`.
    """

    above: int = 0
    below: int = 0
    warning_id: str = ""
    scored_at: datetime | None = None


def step(
    standing: Standing,
    machine_id: str,
    as_of_at: datetime,
    probability: float,
    threshold: float,
    policy: Policy,
) -> tuple[Standing, Change | None]:
    """Take one score into account.

    A warning opens after `open_after_scores` consecutive scores at or above the threshold, with the
    id `<machine>@<hour>`, and closes after `close_after_scores` consecutive ones below half of it;
    scores in between change nothing but end both runs. After a gap of more than 24 hours the runs begin
    anew, an open warning stays. A score that is no number counts as one in between.
    """
    above, below, warning_id, scored_at = standing
    if scored_at is not None and as_of_at - scored_at > GAP:
        above = below = 0
    above = above + 1 if probability >= threshold else 0
    below = below + 1 if probability < threshold / 2 else 0
    change: Change | None = None
    if not warning_id and above >= policy.open_after_scores:
        warning_id, change = f"{machine_id}@{as_of_at:%Y-%m-%dT%H}", "opened"
    elif warning_id and below >= policy.close_after_scores:
        warning_id, change = "", "closed"
    return Standing(above, below, warning_id, as_of_at), change


def reset(standing: Standing) -> tuple[Standing, Literal["closed"] | None]:
    """A new episode begins, maintenance was done: counting starts anew, an open warning is closed."""
    return Standing(), "closed" if standing.warning_id else None
