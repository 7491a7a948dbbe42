"""Whether a challenger takes the champion's place: rules, a paired comparison on held-out time, one verdict.

Both score the same rows, of a time from which neither has learned and whose labels are known. Each metric is
measured per block (a day, a machine, a group of households); what counts is the mean of the blocks'
differences and how sure it is: a bootstrap over blocks, stretched to Student's t, because resampling a week of
seven days is too sure of itself.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestration.errors import MendableError

Floats = NDArray[np.float64]
Kind = Literal["technical", "business", "fairness", "latency"]
KINDS: Final = ("technical", "business", "fairness", "latency")
RESAMPLES: Final = 2000
SEED: Final = 20261124
LEAST_BLOCKS: Final = 5
"""With fewer nothing can be told for sure."""


@dataclass(frozen=True)
class Rule:
    """A row of `seeds/promotion_rules.csv`.

    Attributes:
        metric: as the use case's trial spells it.
        kind: `technical` and `business`: the gain must be above `margin` for sure, and a margin below 0
            is the loss that may not be exceeded; `fairness`: no group may lose more than `margin` for
            sure; `latency`: the value may be at most `margin`.
        margin: in the metric's unit.
        confidence: how sure, from 0.5 to below 1, one-sided.
        direction: whether the metric should be high (`at_least`) or low (`at_most`).
    """

    metric: str
    kind: Kind
    margin: float
    confidence: float
    direction: Literal["at_least", "at_most"]

    def __post_init__(self) -> None:
        """Refuse what no rule can mean."""
        if (
            self.kind not in KINDS
            or not 0.5 <= self.confidence < 1
            or not math.isfinite(self.margin)
            or self.direction not in ("at_least", "at_most")
        ):
            raise MendableError(
                f"promotion_rules: {self.metric}",
                expected=f"kind one of {', '.join(KINDS)}, a finite margin, a confidence from 0.5 to"
                " below 1, direction at_least or at_most",
                arrived=f"{self.kind}, {self.margin}, {self.confidence}, {self.direction}",
                mend="correct seeds/promotion_rules.csv",
            )


def rules_of(rows: Iterable[Mapping[str, Any]], use_case: str) -> list[Rule]:
    """The rules of a use case, from rows of the seed or of the warehouse's table of it.

    Raises:
        MendableError: there are none, or one is not understood.
    """
    found = [
        Rule(
            str(row["metric"]),
            row["kind"],
            float(row["margin"]),
            float(row["confidence"]),
            row["direction"],
        )
        for row in rows
        if row["use_case"] == use_case
    ]
    if not any(rule.kind == "technical" for rule in found):
        raise MendableError(
            f"promotion_rules of {use_case}",
            expected="at least one technical rule: without one every challenger would win",
            arrived=f"{len(found)} rules, none technical",
            mend="add it to seeds/promotion_rules.csv, then make build",
        )
    return found


def read_rules(path: Path, use_case: str) -> list[Rule]:
    """The rules of a use case in a seed file."""
    with path.open(newline="", encoding="utf-8") as file:
        return rules_of(csv.DictReader(file), use_case)


class Pair(NamedTuple):
    """One metric of both models: (blocks,) each, NaN where a block says nothing."""

    challenger: Floats
    champion: Floats


@dataclass(frozen=True)
class Trial:
    """What a challenger was measured to be.

    Attributes:
        metrics: metric to `Pair`.
        groups: metric to group to `Pair`, for fairness.
        latency: metric to value.
        broken: what the challenger's scores break of their contract.
        is_first: whether the other one is the rule that decides without a model.
    """

    metrics: Mapping[str, Pair]
    groups: Mapping[str, Mapping[str, Pair]]
    latency: Mapping[str, float]
    broken: Sequence[str] = ()
    is_first: bool = False


@dataclass(frozen=True)
class Line:
    """What one rule found: means of both, the gain (above 0 is better) with its bounds, in the metric's unit."""

    metric: str
    kind: Kind
    challenger: float | None
    champion: float | None
    gain: float | None
    low: float | None
    high: float | None
    margin: float
    blocks: int
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """Promoted or not, why in words, and a line per rule and group."""

    promoted: bool
    reason: str
    lines: tuple[Line, ...] = ()

    def as_rows(self) -> list[dict[str, Any]]:
        """The lines, for JSON."""
        return [asdict(line) for line in self.lines]


def gain_interval(differences: Floats, confidence: float) -> tuple[float, float, float]:
    """Mean of the blocks' differences, and its lower and upper one-sided bound.

    Args:
        differences: (blocks,), at least two.
        confidence: of each bound.
    """
    from scipy.stats import norm, t

    count = len(differences)
    mean = float(differences.mean())
    picked = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    means = differences[picked].mean(axis=1)
    stretch = math.sqrt(count / (count - 1))
    if confidence > 0.5:
        stretch *= float(t.ppf(confidence, count - 1) / norm.ppf(confidence))
    low, high = np.quantile(means, [1 - confidence, confidence])
    return mean, mean + stretch * (float(low) - mean), mean + stretch * (float(high) - mean)


def decide(trial: Trial, rules: Sequence[Rule]) -> Verdict:
    """Hold a trial against the rules; every rule must pass.

    A first model only has to be better than the rule it replaces on average; that one was never in force
    by merit.
    """
    if trial.broken:
        return Verdict(False, f"its scores break their contract: {'; '.join(trial.broken)}")
    lines: list[Line] = []
    for rule in rules:
        if rule.kind == "latency":
            if rule.metric in trial.latency:
                value = trial.latency[rule.metric]
                lines.append(_latency(rule, value))
        elif rule.kind == "fairness":
            pairs = trial.groups.get(rule.metric, {})
            lines += [_compared(rule, pairs[g], trial.is_first, f" ({g})") for g in sorted(pairs)]
        elif rule.metric in trial.metrics:
            lines.append(_compared(rule, trial.metrics[rule.metric], trial.is_first))
        else:
            lines.append(
                Line(rule.metric, rule.kind, None, None, None, None, None, rule.margin, 0, False)
            )
    failed = [line for line in lines if not line.passed]
    if failed:
        return Verdict(False, "; ".join(map(_in_words, failed)), tuple(lines))
    better = [line for line in lines if line.kind == "technical"]
    return Verdict(True, "; ".join(map(_in_words, better)), tuple(lines))


def _latency(rule: Rule, value: float) -> Line:
    passed = value <= rule.margin
    return Line(rule.metric, rule.kind, value, None, None, None, None, rule.margin, 1, passed)


def _compared(rule: Rule, pair: Pair, is_first: bool, group: str = "") -> Line:
    known = np.isfinite(pair.challenger) & np.isfinite(pair.champion)
    challenger, champion = pair.challenger[known], pair.champion[known]
    differences = challenger - champion if rule.direction == "at_least" else champion - challenger
    count, name = len(differences), rule.metric + group
    if count < (2 if is_first and rule.kind != "fairness" else LEAST_BLOCKS):
        # A group that was hardly seen cannot be told to be worse; a metric cannot be told to be better.
        passed = rule.kind == "fairness"
        return Line(name, rule.kind, None, None, None, None, None, rule.margin, count, passed)
    mean, low, high = gain_interval(differences, rule.confidence)
    if rule.kind == "fairness":
        passed = is_first or high >= -rule.margin
    elif is_first:
        passed = mean > min(rule.margin, 0.0)
    else:
        passed = low > rule.margin
    return Line(
        name, rule.kind, float(challenger.mean()), float(champion.mean()), mean, low, high,
        rule.margin, count, passed,
    )  # fmt: skip


def _in_words(line: Line) -> str:
    if line.kind == "latency":
        return f"{line.metric} {line.challenger:.3g}, may be {line.margin:g}"
    if line.gain is None:
        return f"{line.metric}: {line.blocks} blocks to compare on are too few"
    must = (
        "may lose at most" if line.kind == "fairness" or line.margin < 0 else "must gain more than"
    )
    return (
        f"{line.metric} {line.challenger:.4g} against {line.champion:.4g}, gain {line.gain:+.3g}"
        f" (between {line.low:+.3g} and {line.high:+.3g}), {must} {abs(line.margin):g}"
    )


def attempt(make: Callable[[], Trial], rules: Sequence[Rule]) -> Verdict:
    """The verdict on a trial; a challenger that crashes while it is measured is refused, not the build."""
    try:
        trial = make()
    except Exception as error:  # noqa: BLE001 - whatever a challenger does, the champion stays
        return Verdict(
            False, f"the challenger crashed while it was measured ({type(error).__name__})"
        )
    return decide(trial, rules)


def slow_percentile(score_one: Callable[[int], object], rows: int, tries: int = 3) -> float:
    """99th percentile of the milliseconds that single rows take, in the calmest of some tries.

    Args:
        score_one: scores the row of a number.
        rows: how many there are; up to 300 are scored.
        tries: a machine that is busy with something else says nothing of the model.
    """
    import time

    least = math.inf
    for _ in range(tries):
        took = []
        for row in range(min(rows, 300)):
            began = time.perf_counter()
            score_one(row)
            took.append(time.perf_counter() - began)
        least = min(least, 1000 * float(np.quantile(took, 0.99)))
    return least
