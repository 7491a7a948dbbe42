"""Fraud detection: fit a week's champion and baseline, score payments in microseconds, say why.

**The protocol** (Fraud Detection Handbook, chapter 5), as of a Monday T: train on the payments of
[T - 14 d, T - 7 d), wait a week for their labels, test on [T, T + 7 d). From each test day the
payments of customers are removed who had a fraud since T - 14 d whose label was known by then:
their cards are blocked. Nothing of the week of delay is trained on, and no label that became known
after T.

**The models.** The champion is LightGBM: boosted trees with dropout (dart), which rank the frauds of the
following week better than without; seeded and on a fixed number of threads, so that the same rows
give the same text. The baseline is a logistic regression on the standardised
inputs. Both see beside the model's inputs what follows from them: the amount against what the customer
usually pays, with this payment and without it, and the terminal's frauds as a count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestration.errors import MendableError
from orchestration.learning.trained import TrainedModel

Algorithm = Literal["lightgbm", "logistic_regression"]
Floats = NDArray[np.float64]

ALGORITHMS: Final[tuple[Algorithm, ...]] = ("lightgbm", "logistic_regression")
FEATURES: Final = (
    "amount",
    "is_weekend",
    "is_night",
    "customer_payments_count_1d",
    "customer_payments_count_7d",
    "customer_payments_count_30d",
    "customer_amount_avg_1d",
    "customer_amount_avg_7d",
    "customer_amount_avg_30d",
    "terminal_payments_count_1d",
    "terminal_payments_count_7d",
    "terminal_payments_count_30d",
    "terminal_fraud_share_1d",
    "terminal_fraud_share_7d",
    "terminal_fraud_share_30d",
)
"""The columns of the matrix that a model scores, in their order."""
DERIVED: Final = (
    "amount_over_customer_avg_7d",
    "amount_over_customer_avg_30d",
    "customer_trend_7d",
    "terminal_frauds_count_1d",
    "terminal_frauds_count_7d",
    "terminal_frauds_count_30d",
    "amount_over_customer_others_1d",
    "amount_over_customer_others_7d",
    "amount_over_customer_others_30d",
)
"""What a model works out from them; see `_with_derived`."""
TRAIN_DAYS = 7
DELAY_DAYS = 7
TEST_DAYS = 7
WARM_DAYS = 37
"""History that the first training payment needs: a month's window behind a week's delay."""
COMPARED_WEEKS = 4
"""Tested weeks over which the champion is chosen."""
LARGE_AMOUNT = 220.0
"""Above it the baseline rule calls a payment fraud."""
FOLDS = 5
THREADS = 1
SEED = 20180401
_ROUNDS = 150
_PARAMETERS: Final = {
    "objective": "binary",
    "boosting": "dart",
    "learning_rate": 0.15,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": THREADS,
    "seed": SEED,
    "verbose": -1,
}


def matrix_of(frame: pl.DataFrame) -> Floats:
    """A model's input: (rows, 15) of `FEATURES` as float64, in the order of the frame."""
    return frame.select(pl.col(name).cast(pl.Float64) for name in FEATURES).to_numpy(
        order="c", writable=True
    )


@dataclass(frozen=True, eq=False)
class Model(TrainedModel):
    """A week's trained model.

    Attributes:
        as_of_at: the Monday T, naive UTC.
        algorithm: how it was fitted.
        alert_threshold: scores from here on are alerts, about as many cards a day as can be looked at.
        parameters: LightGBM's own text (`trees`), or `means`, `scales`, `weights` and `intercept`.
    """

    USE_CASE = "fraud_detection"

    as_of_at: datetime
    algorithm: Algorithm
    alert_threshold: float
    parameters: dict[str, Any]

    def _contents(self) -> dict[str, Any]:
        return {
            "as_of_at": self.as_of_at.isoformat(),
            "algorithm": self.algorithm,
            "alert_threshold": self.alert_threshold,
            "features": list(FEATURES),
            "parameters": self.parameters,
        }

    @classmethod
    def _parsed(cls, parsed: dict[str, Any]) -> Self:
        if parsed["features"] != list(FEATURES):
            raise ValueError("it was fitted to other features")
        if parsed["algorithm"] not in ALGORITHMS:
            raise ValueError(f"algorithm {parsed['algorithm']!r}")
        return cls(
            as_of_at=datetime.fromisoformat(parsed["as_of_at"]),
            algorithm=parsed["algorithm"],
            alert_threshold=float(parsed["alert_threshold"]),
            parameters=dict(parsed["parameters"]),
        )

    def _tried(self) -> Self:
        _ = self._scorer
        return self

    @cached_property
    def _scorer(self) -> _Trees | _Line:
        if self.algorithm == "lightgbm":
            return _Trees(self.parameters["trees"])
        return _Line(**{name: np.array(value) for name, value in self.parameters.items()})

    def score(self, matrix: Floats) -> Floats:
        """How likely each payment is fraud, from 0 to 1: (n,).

        Args:
            matrix: (n, 15) of `FEATURES`, float64.
        """
        return self._scorer.score(_with_derived(matrix))

    def reasons(self, matrix: Floats, scores: Floats, most: int = 3) -> list[list[str]]:
        """Why each payment scores high, in words: per payment up to `most`, the strongest first.

        A reason is an input that pushed the score up; inputs that say the same are one reason.
        """
        pushed = self._scorer.contributions(_with_derived(matrix))
        return [
            _reasons_of(row, contributions, score, most)
            for row, contributions, score in zip(matrix, pushed, scores, strict=True)
        ]


class BaselineRule:
    """What decides when no champion can be loaded: a large amount, or a terminal with frauds."""

    version: Final = "baseline_rule"
    alert_threshold: Final = 0.5

    def score(self, matrix: Floats) -> Floats:
        """1 above `LARGE_AMOUNT`, else the share of the terminal's payments in 7 days that was fraud: (n,)."""
        share: Floats = matrix[:, _AT["terminal_fraud_share_7d"]]
        return np.where(matrix[:, 0] > LARGE_AMOUNT, 1.0, share)

    def reasons(self, matrix: Floats, scores: Floats, most: int = 3) -> list[list[str]]:
        """The rule that applied, per payment."""
        return [
            [
                text
                for applies, text in (
                    (row[0] > LARGE_AMOUNT, f"amount {row[0]:.2f} is above {LARGE_AMOUNT:.0f}"),
                    (row[_AT["terminal_fraud_share_7d"]] > 0, _terminal_words(row)),
                )
                if applies
            ][:most]
            or [f"score {score:.2f} by the baseline rule"]
            for row, score in zip(matrix, scores, strict=True)
        ]


class _Trees:
    """LightGBM's booster, on one thread."""

    def __init__(self, text: str) -> None:
        import lightgbm

        try:
            self.booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from None

    def score(self, inputs: Floats) -> Floats:
        return np.asarray(self.booster.predict(inputs, num_threads=1), np.float64)

    def contributions(self, inputs: Floats) -> Floats:
        pushed = self.booster.predict(inputs, pred_contrib=True, num_threads=1)
        return np.asarray(pushed, np.float64)[:, :-1]


@dataclass(frozen=True, eq=False)
class _Line:
    """A logistic regression on standardised inputs."""

    means: Floats
    scales: Floats
    weights: Floats
    intercept: Floats

    def score(self, inputs: Floats) -> Floats:
        pushed: Floats = self.contributions(inputs).sum(axis=1) + self.intercept
        probability: Floats = 1 / (1 + np.exp(-np.clip(pushed, -700, 700)))
        return probability

    def contributions(self, inputs: Floats) -> Floats:
        return (inputs - self.means) / self.scales * self.weights


_AT: Final = {name: position for position, name in enumerate((*FEATURES, *DERIVED))}
_ABOUT: Final = (
    ("amount", ("amount", "amount_over_customer_avg_7d", "amount_over_customer_avg_30d",
                "customer_amount_avg_1d", "customer_amount_avg_7d", "customer_amount_avg_30d",
                "customer_trend_7d", "amount_over_customer_others_1d", "amount_over_customer_others_7d",
                "amount_over_customer_others_30d")),
    ("terminal", ("terminal_fraud_share_1d", "terminal_fraud_share_7d", "terminal_fraud_share_30d",
                  "terminal_frauds_count_1d", "terminal_frauds_count_7d", "terminal_frauds_count_30d")),
    ("busy_terminal", ("terminal_payments_count_1d", "terminal_payments_count_7d",
                       "terminal_payments_count_30d")),
    ("customer", ("customer_payments_count_1d", "customer_payments_count_7d",
                  "customer_payments_count_30d")),
    ("night", ("is_night",)),
    ("weekend", ("is_weekend",)),
)  # fmt: skip
"""Inputs that say the same to a person."""
_GROUPS: Final = [np.array([_AT[name] for name in names]) for _, names in _ABOUT]


def _with_derived(matrix: Floats) -> Floats:
    """(n, 15) to (n, 24): `FEATURES`, then `DERIVED`.

    An average of 0 (every payment of 0.00) counts as a cent. Where the customer made no other payment
    in a window, the amount is as usual: 1.
    """
    inputs = np.empty((len(matrix), len(_AT)))
    inputs[:, :15] = matrix
    amount, counts = matrix[:, :1], matrix[:, 3:6]
    averages = np.maximum(matrix[:, 7:9], 0.01)
    inputs[:, 15:17] = amount / averages
    inputs[:, 17] = averages[:, 0] / averages[:, 1]
    np.multiply(matrix[:, 9:12], matrix[:, 12:15], out=inputs[:, 18:21])
    others = (matrix[:, 6:9] * counts - amount) / np.maximum(counts - 1, 1)
    inputs[:, 21:] = np.where(counts > 1, amount / np.maximum(others, 0.01), 1)
    return inputs


def _reasons_of(row: Floats, contributions: Floats, score: float, most: int) -> list[str]:
    groups = [
        (float(contributions[group].sum()), *about)
        for group, about in zip(_GROUPS, _ABOUT, strict=True)
    ]
    strongest = sorted(groups, key=lambda group: -group[0])
    words = [_words(about, row) for pushed, about, _ in strongest[:most] if pushed > 0]
    return words or [f"score {score:.2f}, of many small signs"]


def _words(about: str, row: Floats) -> str:
    at = dict(zip(FEATURES, row.tolist(), strict=True))
    if about == "amount":
        return _amount_words(at)
    if about == "terminal":
        return _terminal_words(row)
    if about == "busy_terminal":
        return f"this terminal took {at['terminal_payments_count_30d']:.0f} payments in 30 days"
    if about == "customer":
        return (
            f"the customer's payments: {at['customer_payments_count_1d']:.0f} in 1 day,"
            f" {at['customer_payments_count_7d']:.0f} in 7, {at['customer_payments_count_30d']:.0f} in 30"
        )
    if about == "night":
        return "at night (before 07:00)" if at["is_night"] else "by day (from 07:00)"
    return "on a weekend" if at["is_weekend"] else "on a weekday"


def _amount_words(at: dict[str, float]) -> str:
    amount, usual = at["amount"], at["customer_amount_avg_30d"]
    if at["customer_payments_count_30d"] <= 1 or usual <= 0:
        return f"amount {amount:.2f}, the customer's first payment in 30 days"
    return f"amount {amount:.2f} is {amount / usual:.1f} times the customer's 30-day average"


def _terminal_words(row: Floats) -> str:
    """The shortest window in which this terminal had a fraud."""
    for days in (1, 7, 30):
        share = row[_AT[f"terminal_fraud_share_{days}d"]]
        if share > 0:
            window = "1 day" if days == 1 else f"{days} days"
            percent = f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.1f}"
            return f"{percent} % of this terminal's payments in {window} were fraud (as known a week later)"
    return "no known fraud at this terminal in 30 days"


@dataclass(frozen=True)
class Week:
    """The periods of one Monday T, each half-open."""

    as_of_at: datetime

    @property
    def trained_from(self) -> datetime:
        """T - 14 d."""
        return self.as_of_at - timedelta(days=TRAIN_DAYS + DELAY_DAYS)

    @property
    def trained_until(self) -> datetime:
        """T - 7 d."""
        return self.as_of_at - timedelta(days=DELAY_DAYS)

    @property
    def tested_from(self) -> datetime:
        """T."""
        return self.as_of_at

    @property
    def tested_until(self) -> datetime:
        """T + 7 d."""
        return self.as_of_at + timedelta(days=TEST_DAYS)


def weeks(first_payment_at: datetime, last_labelled_at: datetime) -> list[Week]:
    """Every week that can be trained, oldest first.

    The first one's training week has `WARM_DAYS` of history before it; the last one's ends no later
    than the day of the last payment with a label. So the last may have nothing to test on yet.
    """
    days = timedelta(days=1)
    warm = datetime.combine(first_payment_at.date(), datetime.min.time()) + days * (
        WARM_DAYS + TRAIN_DAYS + DELAY_DAYS
    )
    last = datetime.combine(last_labelled_at.date(), datetime.min.time()) + days * (1 + DELAY_DAYS)
    monday = warm + days * (-warm.weekday() % 7)
    found = []
    while monday <= last:
        found.append(Week(monday))
        monday += 7 * days
    return found


def training_rows(frame: pl.DataFrame, week: Week) -> pl.DataFrame:
    """What a week's model learns from: its training week, with the labels known at T.

    Args:
        frame: `contracts.fraud_detection.TRAINING_FRAME`.
        week: which.
    """
    return frame.filter(
        pl.col("as_of_at").is_between(week.trained_from, week.trained_until, closed="left")
        & (pl.col("label_known_at") <= week.as_of_at)
    ).sort("as_of_at", "transaction_id")


def test_rows(frame: pl.DataFrame, week: Week) -> pl.DataFrame:
    """What a week's model is tested on: its test week without the cards that are blocked by then.

    A card is blocked on a day if one of its frauds since the training week began was known before
    the day did.
    """
    known_from = (
        frame.filter(pl.col("label") & (pl.col("as_of_at") >= week.trained_from))
        .group_by("customer_id")
        .agg(blocked_at=pl.col("label_known_at").min())
    )
    return (
        frame.filter(
            pl.col("as_of_at").is_between(week.tested_from, week.tested_until, closed="left")
        )
        .join(known_from, on="customer_id", how="left")
        .filter(~(pl.col("blocked_at") < pl.col("as_of_at").dt.truncate("1d")).fill_null(False))
        .drop("blocked_at")
        .sort("as_of_at", "transaction_id")
    )


def fit(
    frame: pl.DataFrame,
    algorithm: Algorithm,
    cards_per_day: int,
    as_of_at: datetime | None = None,
) -> Model:
    """Train one model. The order of rows does not matter; the same rows give the same model.

    Args:
        frame: `training_rows`: `FEATURES`, `label`, `as_of_at`, `customer_id`, `transaction_id`.
        algorithm: which.
        cards_per_day: cards that the investigators can look at; it sets from which score on to alert.
        as_of_at: T; by default a week after the day of the last row.

    Raises:
        MendableError: fewer than `FOLDS` frauds, or of something else, to learn from.
    """
    frame = frame.sort("as_of_at", "transaction_id")
    frauds = int(frame["label"].sum())
    if min(frauds, frame.height - frauds) < FOLDS:
        raise MendableError(
            "the training week of fraud detection",
            expected=f"at least {FOLDS} payments that are fraud, and {FOLDS} that are not",
            arrived=f"{frauds} that are, {frame.height - frauds} that are not",
            mend="land more payments with their labels",
        )
    if as_of_at is None:
        last = frame["as_of_at"].max()
        assert isinstance(last, datetime)
        as_of_at = datetime.combine(last.date(), datetime.min.time()) + timedelta(
            days=1 + DELAY_DAYS
        )
    inputs, label = _with_derived(matrix_of(frame)), frame["label"].to_numpy()
    out_of_fold = np.empty(len(label))
    fold_of = frame["customer_id"].to_numpy() % FOLDS  # a card is in one fold
    for fold in np.unique(fold_of):
        inside, outside = fold_of != fold, fold_of == fold
        if 0 < label[inside].sum() < inside.sum():
            scorer = _fitted(inputs[inside], label[inside], algorithm)
            out_of_fold[outside] = _scorer_of(algorithm, scorer).score(inputs[outside])
        else:
            out_of_fold[outside] = label[inside].mean()
    return Model(
        as_of_at=as_of_at,
        algorithm=algorithm,
        alert_threshold=_threshold(frame, out_of_fold, cards_per_day),
        parameters=_fitted(inputs, label, algorithm),
    )


def _scorer_of(algorithm: Algorithm, parameters: dict[str, Any]) -> _Trees | _Line:
    return Model(datetime.min, algorithm, 0.0, parameters)._scorer


def _fitted(inputs: Floats, label: NDArray[np.bool_], algorithm: Algorithm) -> dict[str, Any]:
    if algorithm == "lightgbm":
        import lightgbm

        data = lightgbm.Dataset(inputs, label, feature_name=[*FEATURES, *DERIVED])
        booster = lightgbm.train(dict(_PARAMETERS), data, _ROUNDS)
        return {"trees": booster.model_to_string()}
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    means, scales = inputs.mean(axis=0), inputs.std(axis=0)
    scales[scales == 0] = 1.0
    with threadpool_limits(1):
        found = LogisticRegression(max_iter=1000).fit((inputs - means) / scales, label)
    return {
        "means": means.tolist(),
        "scales": scales.tolist(),
        "weights": found.coef_[0].tolist(),
        "intercept": [float(found.intercept_[0])],
    }


def _threshold(frame: pl.DataFrame, scores: Floats, cards_per_day: int) -> float:
    """The score that the highest `cards_per_day` cards of an average day reach."""
    cards = _cards(frame.with_columns(score=pl.Series(scores)))
    days = cards["day"].n_unique()
    ranked = cards["score"].sort(descending=True)
    return float(ranked[min(cards_per_day * days, len(ranked)) - 1])


def _cards(scored: pl.DataFrame) -> pl.DataFrame:
    """A row per card and day: its highest score, and whether one of its payments was fraud."""
    return scored.group_by(day=pl.col("as_of_at").dt.date(), card="customer_id").agg(
        pl.col("score").max(), pl.col("label").any()
    )


@dataclass(frozen=True)
class Metrics:
    """How good a model is on its test week, each from 0 to 1."""

    auc_roc: float
    average_precision: float
    card_precision_100: float


def evaluate(tested: pl.DataFrame, scores: Floats) -> Metrics | None:
    """The three metrics of a test week; none without both kinds of payments.

    Args:
        tested: `test_rows`.
        scores: the model's, in the order of the rows.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    label = tested["label"].to_numpy()
    if not 0 < label.sum() < len(label):
        return None
    return Metrics(
        float(roc_auc_score(label, scores)),
        float(average_precision_score(label, scores)),
        card_precision(tested, scores, 100),
    )


def card_precision(tested: pl.DataFrame, scores: Floats, capacity: int) -> float:
    """Card precision@`capacity`: the share of investigated cards that are found compromised.

    Each day the `capacity` cards with the highest scores are investigated (a card's score is that of
    its highest payment; ties by the smaller customer_id). Those with a fraudulent payment that day
    are divided by `capacity`; the mean over days.
    """
    cards = _cards(tested.with_columns(score=pl.Series(scores)))
    found: pl.DataFrame = (
        cards.sort("day", "score", "card", descending=[False, True, False])
        .group_by("day", maintain_order=True)
        .head(capacity)
        .group_by("day")
        .agg(found=pl.col("label").sum() / capacity)
    )
    mean = found["found"].mean()
    assert isinstance(mean, float)
    return mean


@dataclass(frozen=True)
class Recent:
    """Mean average precision of both algorithms over the last tested weeks, at most `COMPARED_WEEKS`."""

    weeks: int
    lightgbm: float
    logistic_regression: float

    @property
    def champion(self) -> Algorithm:
        """LightGBM, unless the logistic regression was better."""
        return "logistic_regression" if self.logistic_regression > self.lightgbm else "lightgbm"


def recent(history: Sequence[tuple[float | None, float | None]]) -> Recent:
    """How both did of late; 0 each before any week is tested.

    Args:
        history: average precision of LightGBM and of the logistic regression, from the oldest week to
            the newest; null where a week has no test yet.
    """
    pairs = [(a, b) for a, b in history if a is not None and b is not None][-COMPARED_WEEKS:]
    if not pairs:
        return Recent(0, 0.0, 0.0)
    lightgbm, logistic = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return Recent(len(pairs), lightgbm, logistic)
