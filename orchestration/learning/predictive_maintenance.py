"""Predictive maintenance: fit a month's champion and baseline per model of machine, and see how good they are.

**The protocol**, as of the first of a month T: learn from the machine-hours before T and from the
failures known at T, test on [T, next T). A machine that had not failed by T is censored where it was
last heard before T, so that nothing that happened later changes a model as of T.

**Censoring.** An hour whose machine was not seen to fail still says that it lived that long: the
regressor's loss pulls such an hour up to what was observed and never down to it. The classifier learns
from hours whose outcome within the horizon is known, each weighted by the inverse of the probability
that it would be (Kaplan-Meier), so that machines which are repaired in time do not pass for healthy ones.

**What is not learned on the machines it is used on.** Folds are of machines. The calibration of
probabilities (isotonic), the 80 % intervals (conformal, by predicted remaining life), the warning
threshold and the choice of the champion all come from scores of machines that the fold had not seen.

**The models.** LightGBM, seeded and on a fixed number of threads, so that the same rows give the same
text; the baseline is a ridge and a logistic regression on every sensor's distance from its baseline and
on the hours since the machine was last repaired. One configuration for every model of machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestration.errors import MendableError
from orchestration.learning.machine_health import (
    MACHINE_FEATURES,
    SENSOR_FEATURES,
    Algorithm,
    Bools,
    Floats,
    Health,
    Input,
    Model,
    health_of,
    pushed_by,
    scorer_of,
)
from orchestration.learning.warning_states import Policy, Standing, reset, step

HOUR_COLUMNS: Final = (
    "machine_id",
    "as_of_at",
    "machine_model",
    "episode_number",
    "failed_at",
    "observed_until",
    "remaining_hours",
    "is_censored",
    "label",
)
"""What of the training set is about the hour and not an input; each once per machine and hour."""
BASELINE_FEATURES: Final = ("deviation_distance_24h", "episode_hours")
LEAST_FAILURES = 10
FOLDS = 5
"""Folds of machines, and the fewest machines that must have failed."""
COVERAGE = 0.8
"""Share of machines' remaining lives that the interval should hold."""
MOST_ROWS = 30_000
"""More machine-hours than these are thinned evenly before a fit: hours of a machine resemble each other."""
MOST_FALSE = 0.5
"""Share of call-outs that may be in vain; a crew that is called more often for nothing stops coming."""
THRESHOLDS: Final = (0.02, *(round(0.05 * n, 2) for n in range(1, 20)))
LEAST_CHANCE = 0.1
"""An hour counts at most ten times for those that were censored."""
THREADS = 1
SEED = 20080101
_ROUNDS: Final = {"classifier": 150, "regressor": 200}
_PARAMETERS: Final = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "feature_pre_filter": False,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": THREADS,
    "seed": SEED,
    "verbose": -1,
}


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, eq=False)
class Hours:
    """Machine-hours of one model of machine.

    Attributes:
        rows: `HOUR_COLUMNS`, one per machine and hour, sorted by machine_id and as_of_at.
        matrix: (rows, inputs), float64, NaN where nothing is known.
        inputs: what the matrix's columns are.
    """

    rows: pl.DataFrame
    matrix: Floats
    inputs: tuple[Input, ...]

    def where(self, kept: Bools) -> Hours:
        """Those of a mask (n,)."""
        return Hours(self.rows.filter(pl.Series(kept)), self.matrix[kept], self.inputs)

    def between(self, start: datetime, end: datetime) -> Hours:
        """Those with start <= as_of_at < end."""
        inside = self.rows["as_of_at"].is_between(start, end, closed="left")
        return self.where(inside.to_numpy())

    def for_inputs(self, inputs: Sequence[Input]) -> Floats:
        """The matrix (n, len(inputs)) for another list of inputs, NaN for those that are not here."""
        at = {name: column for column, name in enumerate(self.inputs)}
        if all(name in at for name in inputs):
            return self.matrix[:, [at[name] for name in inputs]]
        found = np.full((len(self.matrix), len(inputs)), np.nan)
        for column, name in enumerate(inputs):
            if name in at:
                found[:, column] = self.matrix[:, at[name]]
        return found


def hours_of(frame: pl.DataFrame) -> Hours:
    """A row per machine and hour from the long training set, which has one per sensor.

    Args:
        frame: `contracts.predictive_maintenance.TRAINING_FRAME`, in any order.
    """
    frame = frame.sort("machine_id", "as_of_at", "sensor")
    first = frame.select(
        ((pl.col("machine_id") != pl.col("machine_id").shift(1)) | (pl.col("as_of_at") != pl.col("as_of_at").shift(1)))
        .fill_null(True)  # the first row has none before it
    ).to_series()  # fmt: skip
    rows = frame.filter(first).select(*HOUR_COLUMNS)
    position = first.cast(pl.Int64).cum_sum().to_numpy() - 1
    sensors = frame["sensor"].unique().sort().to_list()
    inputs = [(sensor, feature) for sensor in sensors for feature in SENSOR_FEATURES]
    inputs += [("", feature) for feature in MACHINE_FEATURES]
    matrix = np.full((rows.height, len(inputs)), np.nan)
    codes = frame["sensor"].cast(pl.Enum(sensors)).to_physical().to_numpy()
    at = [np.flatnonzero(codes == number) for number in range(len(sensors))]
    for offset, feature in enumerate(SENSOR_FEATURES):
        values = frame[feature].cast(pl.Float64).to_numpy()
        for number, places in enumerate(at):
            column = number * len(SENSOR_FEATURES) + offset
            matrix[position[places], column] = values[places]
    own = frame.filter(first).select(pl.col(name).cast(pl.Float64) for name in MACHINE_FEATURES)
    matrix[:, len(inputs) - len(MACHINE_FEATURES) :] = own.to_numpy()
    matrix[~np.isfinite(matrix)] = np.nan
    return Hours(rows, matrix, tuple(inputs))


def months(first: datetime, last: datetime) -> list[datetime]:
    """Every first of a month T, 00:00, with first < T <= last, oldest first."""
    found = []
    month = next_month(first)
    while month <= last:
        found.append(month)
        month = next_month(month)
    return found


def next_month(moment: datetime) -> datetime:
    """The first of the month after this one, 00:00."""
    return datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1)


def known_at(hours: Hours, as_of_at: datetime, policy: Policy) -> Hours:
    """The hours before T with `remaining_hours`, `is_censored` and `label` as they were known at T.

    What failed by T is not censored; the rest is where the machine was last heard of before T.
    """
    past = hours.where((hours.rows["as_of_at"] < as_of_at).to_numpy())
    failed = pl.col("failed_at").is_not_null() & (pl.col("failed_at") <= as_of_at)
    heard = pl.col("as_of_at").max().over("machine_id", "episode_number")
    rows = past.rows.with_columns(
        failed_at=pl.when(failed).then("failed_at"),
        observed_until=pl.when(failed).then("failed_at").otherwise(heard),
        is_censored=~failed,
    ).with_columns(
        remaining_hours=(pl.col("observed_until") - pl.col("as_of_at")).dt.total_seconds() / 3600
    )
    survived = pl.col("remaining_hours") >= policy.horizon_hours
    failing = ~pl.col("is_censored") & (pl.col("remaining_hours") <= policy.horizon_hours)
    rows = rows.with_columns(
        label=pl.when(failing).then(True).when(survived).then(False).cast(pl.Boolean)
    )
    return Hours(rows, past.matrix, past.inputs)


def chance_to_be_known(time: Floats, is_censored: Bools, until: Floats) -> Floats:
    """Kaplan-Meier: how likely it is not to be censored before `until`: (n,), at least `LEAST_CHANCE`.

    Args:
        time: (m,) hours that each was observed.
        is_censored: (m,) whether the observation ended without a failure.
        until: (n,) hours.
    """
    ends, counts = np.unique(time[is_censored], return_counts=True)
    at_risk = len(time) - np.searchsorted(np.sort(time), ends, "left")
    survival = np.concatenate([[1.0], np.cumprod(1 - counts / np.maximum(at_risk, 1))])
    chance: Floats = survival[np.searchsorted(ends, until, "left")]
    return np.maximum(chance, LEAST_CHANCE)


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and what it says of machines that its folds had not seen.

    Attributes:
        model: the model.
        out_of_fold: its health for each training hour, by a fold without that machine.
        brier_score: of the out-of-fold probabilities, weighted for censoring; the champion's is lowest.
    """

    model: Model
    out_of_fold: Health
    brier_score: float


def cannot_be_trained(hours: Hours) -> str:
    """Why these hours are not enough to learn from, in words; empty if they are.

    Args:
        hours: `known_at`.
    """
    seen = hours.rows.filter("label").select("machine_id", "failed_at").unique()
    healthy = hours.rows.filter(~pl.col("label"))["machine_id"].n_unique()
    failures, machines = seen.height, seen["machine_id"].n_unique()
    if failures >= LEAST_FAILURES and machines >= FOLDS and healthy >= FOLDS:
        return ""
    return (
        f"{failures} failures of {machines} machines to learn from, {healthy} machines seen healthy;"
        f" it takes {LEAST_FAILURES} failures of {FOLDS} machines"
    )


def fit(
    hours: Hours, algorithm: Algorithm, machine_model: str, as_of_at: datetime, policy: Policy
) -> Fit:
    """Train one model; the same hours give the same model.

    Args:
        hours: `known_at` T, of one model of machine.
        algorithm: which.
        machine_model: whose hours they are.
        as_of_at: T.
        policy: horizon, cap and costs.

    Raises:
        MendableError: too few failures or machines to learn from.
    """
    if reason := cannot_be_trained(hours):
        raise MendableError(
            f"the training set of {machine_model} as of {as_of_at:%Y-%m-%d}",
            expected=f"at least {LEAST_FAILURES} failures of {FOLDS} machines",
            arrived=reason,
            mend="land more of the plant's history, or wait for it",
        )
    inputs = _inputs_used(hours, algorithm)
    matrix = hours.for_inputs(inputs)
    targets = _Targets.of(hours.rows, policy)
    fold_of = _folds(hours.rows)
    thinned = _thinned(hours.rows)
    raw, remaining = np.empty(len(matrix)), np.empty(len(matrix))
    for fold in range(FOLDS):
        inside, outside = thinned & (fold_of != fold), fold_of == fold
        scorer = scorer_of(algorithm, _fitted(matrix, targets, inside, inputs, algorithm))
        raw[outside], remaining[outside] = scorer.predict(matrix[outside])
    remaining = np.clip(remaining, 0, policy.remaining_cap_hours)
    failures = hours.rows.select("machine_id", "failed_at").drop_nulls().unique().height
    curves = {
        "calibration": _calibration(raw, targets, policy.horizon_hours),
        "interval": _interval(remaining, targets, policy.remaining_cap_hours, failures),
    }
    arrays = {name: np.array(values) for part in curves.values() for name, values in part.items()}
    health = health_of(raw, remaining, arrays, policy.remaining_cap_hours)
    model = Model(
        as_of_at=as_of_at,
        machine_model=machine_model,
        algorithm=algorithm,
        warning_threshold=_threshold(hours.rows, health.failure_probability, policy),
        remaining_cap_hours=float(policy.remaining_cap_hours),
        inputs=inputs,
        parameters={**_fitted(matrix, targets, thinned, inputs, algorithm), **curves},
    )
    known = targets.is_known
    errors = np.square(health.failure_probability - targets.label)[known]
    return Fit(model, health, float(np.average(errors, weights=targets.label_weight[known])))


@dataclass(frozen=True, eq=False)
class _Targets:
    """What there is to learn of each hour; arrays (n,).

    `label` counts where `is_known`, with `label_weight`; `remaining` is capped, and only a lower bound
    where `is_bound`; where it is not, `remaining_weight` stands for those that were censored.
    """

    label: Floats
    is_known: Bools
    label_weight: Floats
    remaining: Floats
    is_bound: Bools
    remaining_weight: Floats

    @classmethod
    def of(cls, rows: pl.DataFrame, policy: Policy) -> _Targets:
        time = rows["remaining_hours"].to_numpy()
        censored = rows["is_censored"].to_numpy()
        cap = float(policy.remaining_cap_hours)
        horizon = np.minimum(time, policy.horizon_hours)
        return cls(
            label=rows["label"].fill_null(False).cast(pl.Float64).to_numpy(),
            is_known=rows["label"].is_not_null().to_numpy(),
            label_weight=1 / chance_to_be_known(time, censored, horizon),
            remaining=np.minimum(time, cap),
            is_bound=censored & (time < cap),
            remaining_weight=1 / chance_to_be_known(time, censored, np.minimum(time, cap)),
        )


def _inputs_used(hours: Hours, algorithm: Algorithm) -> tuple[Input, ...]:
    """What varies, and of that what the algorithm looks at."""
    used = []
    for (sensor, feature), values in zip(hours.inputs, hours.matrix.T, strict=True):
        known = values[~np.isnan(values)]
        looked_at = algorithm == "lightgbm" or feature in BASELINE_FEATURES
        if looked_at and known.size and known.min() < known.max():
            used.append((sensor, feature))
    return tuple(used)


def _folds(rows: pl.DataFrame) -> NDArray[np.int64]:
    """A machine's hours are in one fold; machines that failed are dealt out first, evenly."""
    machines = (
        rows.group_by("machine_id")
        .agg(failures=pl.col("failed_at").n_unique() - pl.col("failed_at").is_null().any())
        .sort("failures", "machine_id", descending=[True, False])
        .with_row_index("place")
    )
    fold = rows.join(machines, on="machine_id", maintain_order="left")["place"] % FOLDS
    return fold.cast(pl.Int64).to_numpy()


def _thinned(rows: pl.DataFrame) -> Bools:
    """Every k-th hour of each machine, so that at most about `MOST_ROWS` are left."""
    every = -(-rows.height // MOST_ROWS)
    kept: Bools = np.arange(rows.height) % every == 0
    return kept


def _fitted(
    matrix: Floats, targets: _Targets, used: Bools, inputs: Sequence[Input], algorithm: Algorithm
) -> dict[str, Any]:
    known = used & targets.is_known
    classify = (matrix[known], targets.label[known], targets.label_weight[known])
    regress = (matrix[used], targets.remaining[used], targets.is_bound[used])
    if algorithm == "lightgbm":
        names = [f"{sensor}.{feature}" for sensor, feature in inputs]
        return {
            "classifier": _boosted_label(*classify, names),
            "regressor": _boosted_remaining(*regress, names),
        }
    return {"classifier": _logistic(*classify), "regressor": _ridge(*regress)}


def _boosted_label(
    matrix: Floats, label: Floats, weight: Floats, names: list[str]
) -> dict[str, Any]:
    import lightgbm

    data = lightgbm.Dataset(matrix, label, weight=weight, feature_name=_plain(names))
    chosen = {**_parameters(len(label)), "objective": "binary"}
    return {"trees": lightgbm.train(chosen, data, _ROUNDS["classifier"]).model_to_string()}


def _boosted_remaining(
    matrix: Floats, remaining: Floats, is_bound: Bools, names: list[str]
) -> dict[str, Any]:
    """Squared error, of which a lower bound takes part only while the prediction is below it."""
    import lightgbm

    start = float(remaining[~is_bound].mean())

    def loss(predicted: Floats, _: Any) -> tuple[Floats, Floats]:
        error = predicted - remaining
        pulls = ~is_bound | (error < 0)
        return np.where(pulls, error, 0.0), pulls.astype(np.float64)

    data = lightgbm.Dataset(
        matrix, remaining, init_score=np.full(len(remaining), start), feature_name=_plain(names)
    )
    chosen = {**_parameters(len(remaining)), "objective": loss, "lambda_l2": 1.0}
    booster = lightgbm.train(chosen, data, _ROUNDS["regressor"])
    return {"trees": booster.model_to_string(), "start": start}


def _parameters(rows: int) -> dict[str, Any]:
    """A leaf holds 100 hours, or a fiftieth of them if they are few."""
    return {**_PARAMETERS, "min_data_in_leaf": min(100, max(5, rows // 50))}


def _plain(names: Sequence[str]) -> list[str]:
    """Names that LightGBM's text format takes: a sensor may be called anything."""
    return [f"input_{column}" for column in range(len(names))]


def _standards(matrix: Floats) -> dict[str, Floats]:
    """Means and standard deviations of what is there; 0 and 1 where nothing is, or nothing varies."""
    known = ~np.isnan(matrix)
    counts = np.maximum(known.sum(axis=0), 1)
    means = np.where(known, matrix, 0).sum(axis=0) / counts
    scales = np.sqrt(np.square(np.where(known, matrix - means, 0)).sum(axis=0) / counts)
    return {"means": means, "scales": np.where(scales > 0, scales, 1.0)}


def _logistic(matrix: Floats, label: Floats, weight: Floats) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    standards = _standards(matrix)
    if label.min() == label.max():  # a fold that saw one outcome only
        weights, intercept = np.zeros(matrix.shape[1]), 5.0 if label.min() else -5.0
        return _listed({**standards, "weights": weights, "intercept": intercept})
    inputs = pushed_by(matrix, {**standards, "weights": 1.0})
    with threadpool_limits(1):
        found = LogisticRegression(max_iter=1000, C=0.1).fit(inputs, label, sample_weight=weight)
    return _listed({**standards, "weights": found.coef_[0], "intercept": found.intercept_[0]})


def _ridge(matrix: Floats, remaining: Floats, is_bound: Bools) -> dict[str, Any]:
    """Ridge regression; a lower bound is what is predicted where that is more, until it settles."""
    from threadpoolctl import threadpool_limits

    standards = _standards(matrix)
    inputs = pushed_by(matrix, {**standards, "weights": 1.0})
    target, intercept = remaining, 0.0
    penalty = 10.0 * np.eye(inputs.shape[1])
    weights: Floats = np.zeros(inputs.shape[1])
    with threadpool_limits(1):
        square = inputs.T @ inputs + penalty
        for _ in range(10 if is_bound.any() else 1):
            intercept = float(target.mean())
            weights = np.asarray(
                np.linalg.solve(square, inputs.T @ (target - intercept)), np.float64
            )
            lived_longer = np.maximum(remaining, inputs @ weights + intercept)
            target = np.asarray(np.where(is_bound, lived_longer, remaining), np.float64)
    return _listed({**standards, "weights": weights, "intercept": intercept})


def _listed(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value, np.float64).tolist() for name, value in numbers.items()}


def _calibration(raw: Floats, targets: _Targets, horizon: float) -> dict[str, list[float]]:
    """Isotonic regression of what happened on what the folds said: the knots of a line.

    Hours within a horizon of each other tell the same story, and no finite number of stories makes
    anything certain.
    """
    from sklearn.isotonic import IsotonicRegression

    known = targets.is_known
    least = 1 / (2 + known.sum() / horizon)
    line = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    line.fit(raw[known], targets.label[known], sample_weight=targets.label_weight[known])
    return _listed({"score": line.X_thresholds_, "probability": line.y_thresholds_})


def _interval(
    remaining: Floats, targets: _Targets, cap: float, failures: int
) -> dict[str, list[float]]:
    """How far off the folds were, by predicted remaining life: quantiles that leave `COVERAGE` between.

    A little more than that the fewer failures were seen: the conformal (n + 1) / n. Where the upper
    end is the cap nothing lies above it, and the rest is left below.
    """
    known = ~targets.is_bound
    predicted, truth = remaining[known], targets.remaining[known]
    weight = targets.remaining_weight[known]
    groups = np.array_split(np.argsort(predicted, kind="stable"), np.clip(len(truth) // 200, 1, 10))
    tail = (1 - COVERAGE * (failures + 1) / failures) / 2
    found: dict[str, list[float]] = {"remaining": [], "low": [], "high": []}
    for group in groups:
        centre, error = float(predicted[group].mean()), truth[group] - predicted[group]
        is_capped = _quantile(truth[group], weight[group], 1 - tail) >= cap
        below = 2 * tail if is_capped else tail
        found["remaining"].append(centre)
        found["low"].append(_quantile(error, weight[group], below))
        above = cap - centre if is_capped else _quantile(error, weight[group], 1 - tail)
        found["high"].append(above)
    return found


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    place = np.searchsorted(below, share * below[-1])
    return float(values[order][min(int(place), len(values) - 1)])


# ---------------------------------------------------------------- warnings


@dataclass(frozen=True)
class Warned:
    """One warning: `row` is the hour's place in the frame at which it opened."""

    warning_id: str
    machine_id: str
    row: int
    opened_at: datetime
    closed_at: datetime | None = None
    closed_by: Literal["maintenance", "recovered", ""] = ""


def warnings_of(
    rows: pl.DataFrame, probability: Floats, thresholds: Floats, policy: Policy
) -> tuple[Bools, list[Warned]]:
    """Walk through every machine's scores as the stream does.

    Args:
        rows: machine_id, as_of_at, episode_number, sorted by machine_id and as_of_at.
        probability: (n,) of failure.
        thresholds: (n,) the warning threshold in force at each.
        policy: how many scores open and close a warning.

    Returns:
        (n,) whether a warning is open after each hour, and the warnings in the order of opening.
    """
    machines = rows["machine_id"].to_list()
    moments = rows["as_of_at"].to_list()
    episodes = rows["episode_number"].to_list()
    is_open = np.zeros(rows.height, np.bool_)
    found: list[Warned] = []
    standing, machine, episode = Standing(), None, None
    scores = zip(machines, moments, episodes, probability.tolist(), thresholds.tolist(), strict=True)  # fmt: skip
    for row, (machine_id, as_of_at, episode_number, score, threshold) in enumerate(scores):
        if machine_id != machine:
            standing, machine, episode = Standing(), machine_id, episode_number
        if episode_number != episode:
            standing, change = reset(standing)
            episode = episode_number
            if change:
                found[-1] = _closed(found[-1], as_of_at, "maintenance")
        standing, changed = step(standing, machine_id, as_of_at, score, threshold, policy)
        if changed == "opened":
            found.append(Warned(standing.warning_id, machine_id, row, as_of_at))
        elif changed == "closed":
            found[-1] = _closed(found[-1], as_of_at, "recovered")
        is_open[row] = bool(standing.warning_id)
    return is_open, found


def _closed(
    warned: Warned, closed_at: datetime, closed_by: Literal["maintenance", "recovered"]
) -> Warned:
    return Warned(
        warned.warning_id, warned.machine_id, warned.row, warned.opened_at, closed_at, closed_by
    )


def _threshold(rows: pl.DataFrame, probability: Floats, policy: Policy) -> float:
    """The threshold that costs least of those at which at most `MOST_FALSE` of call-outs are in vain.

    Of several that cost the same, the one that warns earliest.
    """
    costs = []
    for threshold in THRESHOLDS:
        _, found = warnings_of(rows, probability, np.full(rows.height, threshold), policy)
        cost, false_share = cost_of(rows, found, policy)
        costs.append((max(false_share, MOST_FALSE), cost, threshold))
    return min(costs)[2]


def cost_of(rows: pl.DataFrame, found: Sequence[Warned], policy: Policy) -> tuple[float, float]:
    """What call-outs and downtime cost with these warnings, and the share of warnings in vain.

    A failure is met by a planned repair if a warning is open `planned_downtime_hours` before it.
    A warning is in vain if its machine does not fail within the horizon; it is not counted if that
    is not known.

    Args:
        rows: of `known_at`, as given to `warnings_of`.
        found: the warnings.
        policy: the costs.
    """
    opened = pl.DataFrame(
        {
            "row": [w.row for w in found],
            "opened_at": [w.opened_at for w in found],
            "closed_at": [w.closed_at for w in found],
        },
        schema={"row": pl.Int64, "opened_at": pl.Datetime("us"), "closed_at": pl.Datetime("us")},
    )
    episode = ["machine_id", "episode_number"]
    warned = opened.join(rows.with_row_index("row").cast({"row": pl.Int64}), on="row")
    known = warned.filter(pl.col("label").is_not_null())
    false_share = float((~known["label"]).sum()) / max(known.height, 1)
    deadline = pl.col("failed_at") - timedelta(hours=policy.planned_downtime_hours)
    in_time = warned.filter(
        (pl.col("opened_at") <= deadline)
        & (pl.col("closed_at").is_null() | (pl.col("closed_at") > deadline))
    )
    failures = rows.filter(pl.col("failed_at").is_not_null()).select(episode).unique()
    met = failures.join(in_time, on=episode, how="semi").height
    planned, unplanned = policy.planned_downtime_hours, policy.unplanned_downtime_hours
    downtime = met * planned + (failures.height - met) * unplanned
    return len(found) * policy.callout_cost + downtime * policy.downtime_cost_per_hour, false_share


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Metrics:
    """How good a model is on its test month; none where nothing of the kind was seen.

    Remaining life in hours and capped: `remaining_hours_rmse` at each machine's last tested hour (the
    standard protocol of run-to-failure sets), `_all` and `mae` over all hours; `mean_life_rmse` is what
    the mean life of the training machines, less the hours run, would get at the last hours.
    """

    tested_hours: int
    tested_failures: int
    remaining_hours_rmse: float | None
    remaining_hours_rmse_all: float | None
    remaining_hours_mae: float | None
    mean_life_rmse: float | None
    interval_coverage: float | None
    average_precision: float | None
    brier_score: float | None
    calibration_error: float | None


def evaluate(tested: Hours, health: Health, policy: Policy, mean_life: float) -> Metrics:
    """The metrics of a test month, with what is known today.

    Args:
        tested: the month's hours as they are in the training set.
        health: the model's, in their order.
        policy: the cap.
        mean_life: of the training machines' episodes that ended in a failure, hours.
    """
    rows, cap = tested.rows, float(policy.remaining_cap_hours)
    time, censored = rows["remaining_hours"].to_numpy(), rows["is_censored"].to_numpy()
    truth, known = np.minimum(time, cap), ~censored | (time >= cap)
    error = health.remaining_hours - truth
    last = known & (rows["machine_id"] != rows["machine_id"].shift(-1)).fill_null(True).to_numpy()
    run = tested.for_inputs([("", "episode_hours")])[:, 0]
    naive = np.clip(mean_life - run, 0, cap) - truth
    slack = 1e-9  # an end of the interval is inside
    inside = (health.remaining_hours_low - slack <= truth) & (
        truth <= health.remaining_hours_high + slack
    )
    labelled = rows["label"].is_not_null().to_numpy()
    label = rows["label"].fill_null(False).to_numpy()[labelled]
    probability = health.failure_probability[labelled]
    return Metrics(
        tested_hours=rows.height,
        tested_failures=rows.select("machine_id", "failed_at").drop_nulls().unique().height,
        remaining_hours_rmse=_root_mean(error[last]),
        remaining_hours_rmse_all=_root_mean(error[known]),
        remaining_hours_mae=float(np.abs(error[known]).mean()) if known.any() else None,
        mean_life_rmse=_root_mean(naive[last]),
        interval_coverage=float(inside[known].mean()) if known.any() else None,
        average_precision=_average_precision(label, probability),
        brier_score=float(np.square(probability - label).mean()) if labelled.any() else None,
        calibration_error=calibration_error(label, probability),
    )


def mean_life(rows: pl.DataFrame, run: Floats) -> float:
    """Mean hours from the start of an episode to the failure that ended it.

    Args:
        rows: of `known_at`.
        run: (n,) hours since the episode began.
    """
    lives = (
        rows.with_columns(life=pl.col("remaining_hours") + pl.Series(run))
        .filter(~pl.col("is_censored"))
        .group_by("machine_id", "episode_number")
        .agg(pl.col("life").max())
    )
    return float(lives["life"].cast(pl.Float64).to_numpy().mean())


def calibration_error(label: Bools, probability: Floats, bins: int = 10) -> float | None:
    """Expected calibration error: mean distance of predicted from observed share over equal-width bins."""
    if not len(label):
        return None
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    off = np.bincount(place, probability - label, minlength=bins)
    return float(np.abs(off).sum() / len(label))


def _average_precision(label: Bools, probability: Floats) -> float | None:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, probability)) if label.any() else None


def _root_mean(errors: Floats) -> float | None:
    return float(np.sqrt(np.square(errors).mean())) if len(errors) else None


def champion_of(fits: Mapping[Algorithm, float]) -> Algorithm:
    """The algorithm with the lowest out-of-fold Brier score; LightGBM unless the baseline is better."""
    return "baseline" if fits["baseline"] < fits["lightgbm"] else "lightgbm"
