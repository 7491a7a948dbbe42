"""A trained model of machines: how likely each is to fail, how long it will live, and why.

A model knows one model of machine. It is texts and numbers (JSON), scores in microseconds and runs
nothing when it is loaded; `predictive_maintenance.py` fits it. Without one, `baseline_rule` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from orchestration.learning.trained import TrainedModel

Algorithm = Literal["lightgbm", "baseline"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Input = tuple[str, str]
"""(sensor, feature); the machine's own features have the sensor ""."""

ALGORITHMS: Final[tuple[Algorithm, ...]] = ("lightgbm", "baseline")
SENSOR_FEATURES: Final = (
    "deviation_avg_24h",
    "deviation_std_24h",
    "deviation_slope_24h",
    "deviation_distance_6h",
    "deviation_distance_24h",
    "hours_since_reading",
    "is_stuck",
)
"""Per sensor: against its reference in the same operating condition, so one list does for all machines."""
MACHINE_FEATURES: Final = (
    "episode_hours",
    "hours_since_maintenance",
    "hours_since_recalibration",
    "errors_count_24h",
    "silent_sensors_count",
)
"""The machine's age and its failures so far are left out: in a fleet commissioned on one day both are the
calendar, of which the tested month is always the part never seen (measured: RMSE 25.7 h without, 29.9 with)."""


class Health(NamedTuple):
    """How machines are: four arrays (n,), the last three in hours and capped."""

    failure_probability: Floats
    remaining_hours: Floats
    remaining_hours_low: Floats
    remaining_hours_high: Floats


@dataclass(frozen=True, eq=False)
class Model(TrainedModel):
    """A month's trained model for one model of machine.

    Attributes:
        as_of_at: T, naive UTC.
        machine_model: whose machines it knows.
        algorithm: how it was fitted.
        warning_threshold: probabilities from here on call for a warning.
        remaining_cap_hours: the most remaining life it predicts.
        inputs: the columns of the matrix that it scores, in their order.
        parameters: `classifier` and `regressor` (LightGBM's text, or numbers), `calibration`, `interval`.
    """

    USE_CASE = "predictive_maintenance"

    as_of_at: datetime
    machine_model: str
    algorithm: Algorithm
    warning_threshold: float
    remaining_cap_hours: float
    inputs: tuple[Input, ...]
    parameters: dict[str, Any]

    def _of(self) -> str:
        return f"{self.machine_model}-{self.as_of_at:%Y-%m-%d}"

    def _contents(self) -> dict[str, Any]:
        return {
            "as_of_at": self.as_of_at.isoformat(),
            "machine_model": self.machine_model,
            "algorithm": self.algorithm,
            "warning_threshold": self.warning_threshold,
            "remaining_cap_hours": self.remaining_cap_hours,
            "inputs": [list(name) for name in self.inputs],
            "parameters": self.parameters,
        }

    @classmethod
    def _parsed(cls, parsed: dict[str, Any]) -> Self:
        if parsed["algorithm"] not in ALGORITHMS:
            raise ValueError(f"algorithm {parsed['algorithm']!r}")
        known = {*SENSOR_FEATURES, *MACHINE_FEATURES}
        if strange := sorted({feature for _, feature in parsed["inputs"]} - known):
            raise ValueError(f"it was fitted to other features: {', '.join(strange)}")
        return cls(
            as_of_at=datetime.fromisoformat(parsed["as_of_at"]),
            machine_model=parsed["machine_model"],
            algorithm=parsed["algorithm"],
            warning_threshold=float(parsed["warning_threshold"]),
            remaining_cap_hours=float(parsed["remaining_cap_hours"]),
            inputs=tuple((str(sensor), str(feature)) for sensor, feature in parsed["inputs"]),
            parameters=dict(parsed["parameters"]),
        )

    def _tried(self) -> Self:
        if not np.isfinite(self.score(np.full((1, len(self.inputs)), np.nan))).all():
            raise ValueError("it gives no number")
        return self

    @cached_property
    def _scorer(self) -> _Trees | _Lines:
        return scorer_of(self.algorithm, self.parameters)

    @cached_property
    def _curves(self) -> dict[str, Floats]:
        curves = {**self.parameters["calibration"], **self.parameters["interval"]}
        return {name: np.array(values, np.float64) for name, values in curves.items()}

    def score(self, matrix: Floats) -> Health:
        """Failure within the horizon and remaining life, with the interval that holds 80 % of them.

        Args:
            matrix: (n, len(inputs)), float64, NaN where nothing is known.
        """
        raw, remaining = self._scorer.predict(matrix)
        return health_of(raw, remaining, self._curves, self.remaining_cap_hours)

    def reasons(self, matrix: Floats, most: int = 3) -> list[list[str]]:
        """What raised each machine's failure probability, in words that begin with the sensor.

        Up to `most` per row of the matrix, the strongest first. Takes milliseconds a row: ask only for
        machines that a person will read about.
        """
        pushed = self._scorer.contributions(matrix)
        subjects = [sensor for sensor, _ in self.inputs]
        return [
            _reasons_of(self.inputs, subjects, row, contributions, most)
            for row, contributions in zip(matrix, pushed, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class BaselineRule:
    """What decides when no champion can be loaded: the sensor furthest from its baseline.

    It knows nothing of remaining life: those three are NaN.
    """

    inputs: tuple[Input, ...]
    version: str = "baseline_rule"
    warning_threshold: float = 0.5

    def score(self, matrix: Floats) -> Health:
        """d^2 / (d^2 + 36) of the largest distance d over 24 h: one half at 6 standard deviations."""
        squares = np.square(np.nan_to_num(matrix)).max(axis=1, initial=0.0)
        unknown = np.full(len(matrix), np.nan)
        return Health(squares / (squares + 36), unknown, unknown, unknown)

    def reasons(self, matrix: Floats, most: int = 3) -> list[list[str]]:
        """The sensors furthest from their baselines, per row of the matrix."""
        subjects = [sensor for sensor, _ in self.inputs]
        return [
            _reasons_of(self.inputs, subjects, row, np.abs(np.nan_to_num(row)), most)
            for row in matrix
        ]


def baseline_rule(sensors: Sequence[str]) -> BaselineRule:
    """The rule for machines that have these sensors."""
    return BaselineRule(tuple((sensor, "deviation_distance_24h") for sensor in sensors))


class _Trees:
    """LightGBM's two boosters, on one thread."""

    def __init__(self, classifier: dict[str, Any], regressor: dict[str, Any]) -> None:
        import lightgbm

        try:
            self.classifier = lightgbm.Booster(model_str=classifier["trees"])
            self.regressor = lightgbm.Booster(model_str=regressor["trees"])
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from None
        self.start = float(regressor["start"])

    def predict(self, matrix: Floats) -> tuple[Floats, Floats]:
        probability = self.classifier.predict(matrix, num_threads=1)
        remaining = self.regressor.predict(matrix, num_threads=1)
        return np.asarray(probability, np.float64), np.asarray(remaining, np.float64) + self.start

    def contributions(self, matrix: Floats) -> Floats:
        pushed = self.classifier.predict(matrix, pred_contrib=True, num_threads=1)
        return np.asarray(pushed, np.float64)[:, :-1]


class _Lines:
    """A logistic and a ridge regression on standardised inputs; what is missing counts as the mean."""

    def __init__(self, classifier: dict[str, Any], regressor: dict[str, Any]) -> None:
        self.classifier = {name: np.array(value) for name, value in classifier.items()}
        self.regressor = {name: np.array(value) for name, value in regressor.items()}

    def predict(self, matrix: Floats) -> tuple[Floats, Floats]:
        pushed = pushed_by(matrix, self.classifier)
        raised = pushed.sum(axis=1) + self.classifier["intercept"]
        remaining = pushed_by(matrix, self.regressor).sum(axis=1) + self.regressor["intercept"]
        return 1 / (1 + np.exp(-np.clip(raised, -700, 700))), remaining

    def contributions(self, matrix: Floats) -> Floats:
        return pushed_by(matrix, self.classifier)


def pushed_by(matrix: Floats, line: Mapping[str, Any]) -> Floats:
    """What each standardised input (n, inputs) adds to a linear score; what is missing adds nothing."""
    pushed: Floats = np.nan_to_num((matrix - line["means"]) / line["scales"]) * line["weights"]
    return pushed


def scorer_of(algorithm: Algorithm, parameters: Mapping[str, Any]) -> _Trees | _Lines:
    """What an algorithm's fitted parameters predict with."""
    kind = _Trees if algorithm == "lightgbm" else _Lines
    return kind(parameters["classifier"], parameters["regressor"])


def health_of(raw: Floats, remaining: Floats, curves: Mapping[str, Floats], cap: float) -> Health:
    """Calibrated probabilities and the interval of each remaining life, from what was predicted."""
    remaining = np.clip(remaining, 0, cap)
    low = remaining + np.interp(remaining, curves["remaining"], curves["low"])
    high = remaining + np.interp(remaining, curves["remaining"], curves["high"])
    return Health(
        np.interp(raw, curves["score"], curves["probability"]),
        remaining,
        np.clip(low, 0, remaining),
        np.clip(high, remaining, cap),
    )


def _reasons_of(
    inputs: Sequence[Input],
    subjects: Sequence[str],
    row: Floats,
    contributions: Floats,
    most: int,
) -> list[str]:
    together: dict[str, float] = {}
    strongest: dict[str, int] = {}
    for column, (subject, pushed) in enumerate(zip(subjects, contributions, strict=True)):
        together[subject] = together.get(subject, 0.0) + float(pushed)
        if subject not in strongest or pushed > contributions[strongest[subject]]:
            strongest[subject] = column
    ranked = sorted(together, key=lambda subject: -together[subject])[:most]
    words = [_words(*inputs[strongest[s]], float(row[strongest[s]])) for s in ranked if together[s] > 0]  # fmt: skip
    return words or ["many small signs"]


def _words(sensor: str, feature: str, value: float) -> str:
    if not sensor:
        name = feature.replace("_", " ")
        return f"{name} unknown" if np.isnan(value) else f"{name}: {value:,.0f}"
    if np.isnan(value):
        return f"{sensor} gives too little to judge"
    window = "6 h" if feature.endswith("_6h") else "24 h"
    side = "above" if value > 0 else "below"
    if feature.startswith("deviation_distance"):
        return f"{sensor} is {abs(value):.1f} standard deviations {side} its baseline over {window}"
    if feature.startswith("deviation_avg"):
        return f"{sensor} runs {abs(value):.3g} {side} what is usual for its model over {window}"
    if feature.startswith("deviation_slope"):
        return f"{sensor} {'rises' if value > 0 else 'falls'} by {abs(value):.3g} an hour over {window}"
    if feature.startswith("deviation_std"):
        return f"{sensor} scatters by {value:.3g} over {window}"
    if feature == "is_stuck":
        return f"{sensor} is stuck" if value else f"{sensor} still moves"
    return f"{sensor} was last heard of {value:.1f} h ago"
