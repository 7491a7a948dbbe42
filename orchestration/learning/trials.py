"""The trial of each use case: challenger and champion on the same held-out time, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from orchestration.learning import customer_segmentation, fraud_detection
from orchestration.learning.machine_health import Health
from orchestration.learning.predictive_maintenance import Hours, cost_of, warnings_of
from orchestration.learning.promotion import Floats, Pair, Trial, slow_percentile
from orchestration.learning.warning_states import Policy

Contract = Callable[[pl.DataFrame], list[str]]
"""What of its contract a frame of scores breaks."""
BANDS = ("spend little", "spend middling", "spend much")
WEAR = ("repaired lately", "run in", "run long")
"""Thirds of the tested hours by the time since the machine was last repaired."""
HOUSEHOLD_GROUPS = 20


def fraud_trial(
    challenger: Any,
    champion: Any,
    tested: pl.DataFrame,
    cards_per_day: int,
    contract: Contract,
    *,
    is_first: bool = False,
) -> Trial:
    """A week of payments, day by day: average precision, money saved, both also by how much customers spend.

    Args:
        challenger: `fraud_detection.Model`.
        champion: the same, or the rule that decides without one.
        tested: `fraud_detection.test_rows`.
        cards_per_day: cards that are investigated.
        contract: of `predictions.fraud_backtest`.
        is_first: whether `champion` is that rule.
    """
    matrix = fraud_detection.matrix_of(tested)
    scores = {"challenger": challenger.score(matrix), "champion": champion.score(matrix)}
    told = tested.select(
        pl.lit(challenger.as_of_at).cast(pl.Datetime("us")).alias("as_of_at"),
        pl.lit(challenger.algorithm).alias("algorithm"),
        "transaction_id",
        "customer_id",
        "amount",
        "label",
        pl.col("as_of_at").alias("transaction_at"),
        pl.Series("score", scores["challenger"], pl.Float64),
    )
    day = tested["as_of_at"].dt.date().to_numpy()
    label = tested["label"].to_numpy()
    usual = tested["customer_amount_avg_30d"].to_numpy()
    band_of = np.searchsorted(np.quantile(usual, [1 / 3, 2 / 3]), usual)

    def pair(measure: Callable[[Floats], Floats]) -> Pair:
        return Pair(measure(scores["challenger"]), measure(scores["champion"]))

    def precision(inside: Any) -> Pair:
        return pair(lambda s: _daily_precision(day[inside], label[inside], s[inside]))

    return Trial(
        metrics={
            "average_precision": precision(np.ones(len(label), bool)),
            "saved_per_day": pair(lambda s: _saved_per_day(tested, s, cards_per_day)),
        },
        groups={
            "average_precision_by_spending": {
                name: precision(band_of == number) for number, name in enumerate(BANDS)
            }
        },
        latency={
            "score_ms_p99": slow_percentile(
                lambda row: challenger.score(matrix[row : row + 1]), len(matrix)
            )
        },
        broken=contract(told),
        is_first=is_first,
    )


def machine_trial(
    challenger: Any, champion: Any, tested: Hours, policy: Policy, *, is_first: bool = False
) -> Trial:
    """A month of machine-hours, machine by machine: Brier score, also by wear; what call-outs and standstill cost.

    Each model of machine has its own trial. Within it a model may gain on machines that have run long, most of
    whose hours are near a failure, at the cost of those that were just repaired.

    Args:
        challenger: `machine_health.Model`.
        champion: the same, or the rule that decides without one.
        tested: the month's hours, labelled as far as that is known.
        policy: costs, and when a warning opens.
        is_first: whether `champion` is that rule.
    """
    matrix = tested.for_inputs(challenger.inputs)
    health = {
        "challenger": challenger.score(matrix),
        "champion": champion.score(tested.for_inputs(champion.inputs)),
    }
    thresholds = {
        "challenger": challenger.warning_threshold,
        "champion": champion.warning_threshold,
    }
    machines = tested.rows["machine_id"].unique().sort().to_list()
    of_machine = [(tested.rows["machine_id"] == name).to_numpy() for name in machines]
    labelled = tested.rows["label"].is_not_null().to_numpy()
    label = tested.rows["label"].fill_null(False).to_numpy()

    run = tested.for_inputs([("", "episode_hours")])[:, 0]
    known = labelled & np.isfinite(run)
    wear = np.searchsorted(np.quantile(run[known], [1 / 3, 2 / 3]), run) if known.any() else run

    def brier(told: Health, among: Any) -> Floats:
        wrong = np.square(told.failure_probability - label)
        return np.array([_mean(wrong[inside & among]) for inside in of_machine])

    def pair(among: Any) -> Pair:
        return Pair(brier(health["challenger"], among), brier(health["champion"], among))

    def cost(who: str) -> Floats:
        probability = health[who].failure_probability
        found = []
        for inside in of_machine:
            rows = tested.where(inside).rows
            threshold = np.full(rows.height, thresholds[who])
            _, opened = warnings_of(rows, probability[inside], threshold, policy)
            found.append(cost_of(rows, opened, policy)[0])
        return np.array(found, np.float64)

    return Trial(
        metrics={
            "brier_score": pair(labelled),
            "cost_per_machine": Pair(cost("challenger"), cost("champion")),
        },
        groups={
            "brier_score_by_wear": {
                name: pair(known & (wear == number)) for number, name in enumerate(WEAR)
            }
        },
        latency={
            "score_ms_p99": slow_percentile(
                lambda row: challenger.score(matrix[row : row + 1]), len(matrix)
            )
        },
        broken=_unhealthy(health["challenger"]),
        is_first=is_first,
    )


def segment_trial(
    challenger: customer_segmentation.SegmentationModel,
    champion: customer_segmentation.SegmentationModel,
    frame: pl.DataFrame,
    before: pl.DataFrame,
    contract: Contract,
) -> Trial:
    """The next month's households, in groups of them: silhouette, and who keeps his segment's name.

    Both are measured in the month's own coordinates. Nothing is scored while somebody waits, so there is
    no latency to keep; segments decide on a letter, and no group is worse off by one, so there is no
    fairness to hold.

    Args:
        challenger: the newer model.
        champion: the model in force.
        frame: the training set as of a month after both, whose households neither has learned from as
            they are now.
        before: household_id and segment_name a month earlier, by the champion.
        contract: of `predictions.customer_segments`.
    """
    from scipy.spatial.distance import cdist
    from sklearn.metrics import silhouette_samples

    frame = frame.sort("household_id")
    told = {
        "challenger": customer_segmentation.predict(challenger, frame),
        "champion": customer_segmentation.predict(champion, frame),
    }
    picked = np.random.default_rng(customer_segmentation.SEED).permutation(frame.height)[
        : customer_segmentation.SILHOUETTE_ROWS
    ]
    points = customer_segmentation.points_of_month(frame)[picked]
    distances = cdist(points, points)
    group = frame["household_id"].to_numpy() % HOUSEHOLD_GROUPS

    def distinct(who: str) -> Floats:
        segment = told[who]["segment_id"].to_numpy()[picked]
        if len(np.unique(segment)) < 2:
            return np.full(HOUSEHOLD_GROUPS, -1.0)  # one segment of all is none
        samples = silhouette_samples(distances, segment, metric="precomputed")
        return _by_group(samples, group[picked])

    def kept(who: str) -> Floats:
        both = (
            told[who]
            .select("household_id", "segment_name")
            .join(before.select("household_id", was="segment_name"), on="household_id")
        )
        same = (both["segment_name"] == both["was"]).cast(pl.Float64).to_numpy()
        return _by_group(same, both["household_id"].to_numpy() % HOUSEHOLD_GROUPS)

    return Trial(
        metrics={
            "silhouette": Pair(distinct("challenger"), distinct("champion")),
            "households_kept_share": Pair(kept("challenger"), kept("champion")),
        },
        groups={},
        latency={},
        broken=contract(told["challenger"]),
    )


def _daily_precision(day: Any, label: Any, scores: Floats) -> Floats:
    """Average precision of each day, NaN for one without both kinds of payments."""
    from sklearn.metrics import average_precision_score

    found = []
    for one in np.unique(day):
        inside = day == one
        frauds = label[inside]
        both = 0 < frauds.sum() < len(frauds)
        found.append(average_precision_score(frauds, scores[inside]) if both else np.nan)
    return np.array(found, np.float64)


def _saved_per_day(tested: pl.DataFrame, scores: Floats, cards_per_day: int) -> Floats:
    """Each day the stolen money on the cards that are investigated, those with the highest scores."""
    days = (
        tested.with_columns(score=pl.Series(scores))
        .group_by(day=pl.col("as_of_at").dt.date(), card="customer_id")
        .agg(
            pl.col("score").max(),
            stolen=pl.col("amount").cast(pl.Float64).filter(pl.col("label")).sum(),
        )
        .sort("day", "score", "card", descending=[False, True, False])
        .group_by("day", maintain_order=True)
        .agg(saved=pl.col("stolen").head(cards_per_day).sum())
    )
    return days["saved"].to_numpy().astype(np.float64)


def _unhealthy(health: Health) -> list[str]:
    """What a model may not say: no number, a probability that is none, an interval in disorder."""
    broken = []
    if not all(np.isfinite(values).all() for values in health):
        broken.append("a value is no number")
    if ((health.failure_probability < 0) | (health.failure_probability > 1)).any():
        broken.append("a failure probability is not from 0 to 1")
    low, middle, high = health[2], health[1], health[3]
    if ((low > middle) | (middle > high)).any():
        broken.append("remaining life lies outside its interval")
    return broken


def _by_group(values: Floats, group: Any) -> Floats:
    return np.array([_mean(values[group == one]) for one in range(HOUSEHOLD_GROUPS)])


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
