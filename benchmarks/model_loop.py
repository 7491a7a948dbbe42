"""A year of card payments in which fraud changes twice: `python -m benchmarks.model_loop`.

*Frozen* is the first model, kept all year. *Loop* is what Watershed does by itself: when the labelled weeks say
that the champion has decayed, training is requested as cool-down and budget allow, and the new model must win
its trial by `seeds/promotion_rules.csv`. Features are the project's SQL, models, trials, rules and policy its
own; only the clock is simulated. One training is poisoned, its labels are flipped. Writes docs/model_loop.png.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from benchmarks.fraud_features import model_sql
from benchmarks.timing import ROOT
from orchestration.demo.card_payments import DAY_SECONDS, World, simulate
from orchestration.learning import fraud_detection as fraud
from orchestration.learning.promotion import attempt, read_rules
from orchestration.learning.trials import fraud_trial
from orchestration.registry.retraining import Finding, judge, policy_of

WORLD = World(customers=600, terminals=1_200, first_date=date(2018, 1, 1), days=365, seed=7)
SMALL_AT_NIGHT, LARGE_IS_FINE = 130, 240
"""Days on which thieves begin to draw small amounts at night, and large amounts are fraud no more."""
CARDS_PER_DAY = 60
DECAYED = 0.8
"""A week whose average precision is below this share of what the champion had in its trial has decayed."""
POISONED_REQUEST = 2


def payments() -> pl.DataFrame:
    """The simulated year, with the two changes."""
    frame: Any = pl.from_arrow(simulate(WORLD))
    frame = frame.with_columns(
        day=(pl.col("transaction_at") - pl.datetime(2018, 1, 1)).dt.total_days(),
        night=pl.col("transaction_at").dt.truncate("1d")
        + pl.duration(seconds=pl.col("transaction_id") * 7919 % (DAY_SECONDS // 4)),
    )
    small = (pl.col("fraud_scenario") == 3) & (pl.col("day") >= SMALL_AT_NIGHT)
    fine = (pl.col("fraud_scenario") == 1) & (pl.col("day") >= LARGE_IS_FINE)
    return frame.with_columns(
        transaction_at=pl.when(small).then("night").otherwise("transaction_at"),
        amount=pl.when(small)
        .then((pl.col("amount").cast(pl.Float64) / 50).round(2).cast(pl.Decimal(12, 2)))
        .otherwise("amount"),
        is_fraud=pl.col("is_fraud") & ~fine,
    )


def training_set(made: pl.DataFrame) -> pl.DataFrame:
    """`contracts.fraud_detection.TRAINING_FRAME` of the year, by the project's own SQL."""
    with tempfile.TemporaryDirectory() as folder:
        sql = model_sql(Path(folder))
    with duckdb.connect(":memory:") as connection:
        connection.execute("attach ':memory:' as lake; use lake; create schema intermediate")
        connection.register("made", made.to_arrow())
        connection.execute(
            "create table intermediate.int_payments__merged as"
            " select transaction_id, transaction_at, customer_id, terminal_id, amount from made;"
            "create table intermediate.int_fraud_labels__versioned as select transaction_id, transaction_at,"
            " customer_id, terminal_id, is_fraud, transaction_at + interval 7 days as known_at,"
            " cast(null as timestamp) as superseded_at from made"
        )
        connection.execute(f"create table features as {sql}")
        found = connection.execute(
            "select f.*, m.is_fraud as label, f.as_of_at + interval 7 days as label_known_at"
            " from features as f inner join made as m using (transaction_id)"
            " order by f.as_of_at, transaction_id"
        ).to_arrow_table()
    return pl.DataFrame(found).select(
        *fraud.FEATURES, "transaction_id", "customer_id", "as_of_at", "label", "label_known_at"
    )


@dataclass
class Year:
    """What happened: per Monday the two average precisions, and what was decided when."""

    mondays: list[datetime] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    decided: list[tuple[datetime, str, str]] = field(default_factory=list)


def live(frame: pl.DataFrame) -> Year:
    """The year, Monday by Monday; each sees only what was known by then."""
    rules = read_rules(ROOT / "seeds/promotion_rules.csv", "fraud_detection")
    policies = pl.read_csv(ROOT / "seeds/retraining_policy.csv").iter_rows(named=True)
    policy = policy_of(next(row for row in policies if row["use_case"] == "fraud_detection"))
    weeks = fraud.weeks(frame["as_of_at"][0], frame["as_of_at"][-1] - timedelta(days=14))
    year, requested = Year(), []
    first = fit(frame, weeks[0])
    frozen = champion = first
    promised: float | None = None
    waiting: tuple[fraud.Week, Any] | None = None
    told: dict[datetime, float] = {}
    for week in weeks[2:]:
        now = week.as_of_at
        if waiting is not None and now >= waiting[0].tested_until + timedelta(days=7):
            tested = rows_of(frame, waiting[0])
            trial = partial(
                fraud_trial, waiting[1], champion, tested, CARDS_PER_DAY, lambda scores: []
            )
            verdict = attempt(trial, rules)
            year.decided.append(
                (now, "promoted" if verdict.promoted else "refused", verdict.reason)
            )
            if verdict.promoted:
                champion, promised = waiting[1], precision(waiting[1], tested)
            waiting = None
        known = told.get(now - timedelta(days=14))
        if promised is None and known is not None:
            promised = known
        findings = []
        if known is not None and promised is not None and known < DECAYED * promised:
            findings = [Finding("average_precision", "decay", f"{known:.2f}, was {promised:.2f}")]
        action, why = judge(policy, findings, requested, now)
        if action == "retraining_requested" and waiting is None:
            requested.append(now)
            poisoned = len(requested) == POISONED_REQUEST
            waiting = week, fit(frame, week, poisoned=poisoned)
            year.decided.append((now, "poisoned" if poisoned else "requested", why))
        tested = rows_of(frame, week)
        year.mondays.append(now)
        year.frozen.append(precision(frozen, tested))
        year.loop.append(precision(champion, tested))
        told[now] = year.loop[-1]
    return year


def rows_of(frame: pl.DataFrame, week: fraud.Week) -> pl.DataFrame:
    """A week's test rows."""
    inside = pl.col("as_of_at").is_between(week.trained_from, week.tested_until, closed="left")
    return fraud.test_rows(frame.filter(inside), week)


def fit(frame: pl.DataFrame, week: fraud.Week, *, poisoned: bool = False) -> fraud.Model:
    """The week's model; poisoned, of flipped labels."""
    rows = fraud.training_rows(frame, week)
    if poisoned:
        rows = rows.with_columns(label=~pl.col("label"))
    return fraud.fit(rows, "lightgbm", CARDS_PER_DAY, week.as_of_at)


def precision(model: fraud.Model, tested: pl.DataFrame) -> float:
    """Average precision of a week."""
    found = fraud.evaluate(tested, model.score(fraud.matrix_of(tested)))
    return found.average_precision if found else float("nan")


def draw(year: Year, to: Path) -> None:
    """The year as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=100, facecolor="white")
    axes = figure.add_axes((0.07, 0.12, 0.9, 0.72))
    figure.text(
        0.02, 0.93, "The loop keeps what a frozen model loses", fontsize=14, fontweight="bold"
    )
    figure.text(
        0.02,
        0.88,
        "average precision week by week; a simulated year of card payments",
        fontsize=9.5,
    )
    axes.plot(year.mondays, year.frozen, color="#9a9a9a", lw=1.6, label="first model, frozen")
    axes.plot(year.mondays, year.loop, color="#1f4fd8", lw=1.8, label="the loop")
    marks = {
        "requested": ("^", "#777777", "training requested"), "promoted": ("o", "#1a8a3a", "promoted"),
        "refused": ("x", "#c0392b", "refused"), "poisoned": ("s", "#8e44ad", "training poisoned"),
    }  # fmt: skip
    for what, (marker, colour, name) in marks.items():
        at = [when for when, did, _ in year.decided if did == what]
        axes.scatter(at, [0.02] * len(at), marker=marker, color=colour, s=36, label=name, zorder=3)
    for day, text in ((SMALL_AT_NIGHT, "small amounts at night"), (LARGE_IS_FINE, "large is fine")):
        at_day = datetime(2018, 1, 1) + timedelta(days=day)
        axes.axvline(at_day, color="#222222", ls="--", lw=1)
        axes.text(at_day, 0.97, f" {text}", fontsize=8.5, va="top")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 1.01))
    figure.savefig(to)


def main() -> None:
    """Live the year, print what was decided and both means, draw it; fail if the loop does not keep it."""
    began = time.perf_counter()
    frame = training_set(payments())
    print(f"{frame.height:,} payments, {frame['label'].sum():,} frauds", flush=True)
    year = live(frame)
    for when, what, why in year.decided:
        print(f"{when:%Y-%m-%d} {what}: {why}")
    at = np.array([(monday - datetime(2018, 1, 1)).days for monday in year.mondays])
    frozen, loop = np.array(year.frozen), np.array(year.loop)
    # An answer needs the week, its labels, a training, its test and that one's labels: 5 weeks.
    for name, inside in (
        ("before", at < SMALL_AT_NIGHT),
        (
            "after the first change, once answered",
            (at >= SMALL_AT_NIGHT + 42) & (at < LARGE_IS_FINE),
        ),
        ("after the second, once answered", at >= LARGE_IS_FINE + 42),
    ):
        print(f"{name}: frozen {frozen[inside].mean():.3f}, loop {loop[inside].mean():.3f}")
    draw(year, ROOT / "docs" / "model_loop.png")
    print(f"{time.perf_counter() - began:.0f} s; docs/model_loop.png")
    late = at >= SMALL_AT_NIGHT + 42
    if not loop[late].mean() > frozen[late].mean() + 0.05:
        sys.exit("the loop does not keep what the frozen model loses")


if __name__ == "__main__":
    main()
