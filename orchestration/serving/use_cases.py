"""What each use case takes over HTTP, record by record, and what it answers; knows nothing of HTTP.

A record holds the model's inputs by the names that the warehouse has for them, each with the bounds that
its SQL keeps. Learning's libraries are imported where a model is asked, so that importing this is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from orchestration.settings import Settings

if TYPE_CHECKING:
    from orchestration.learning.customer_segmentation import SegmentationModel
    from orchestration.streaming import fraud_scoring, maintenance_scoring

BASELINE: Final = "baseline_rule"
"""The version of what answers where no champion is in force."""
_MOST_REASONS = 3
_LAPSED_DAYS = 60

M = TypeVar("M")
Say = Callable[[str], None]


class Unfit(NamedTuple):
    """Why a record that was well formed cannot be scored."""

    field: str
    problem: str


Answer = dict[str, Any] | Unfit


class Answered(BaseModel):
    """What is said of every record."""

    position: int = Field(description="The record's place in the request, from 0.")
    model_version: str = Field(description=f"The model that decided; `{BASELINE}`: no champion.")
    reasons: list[str] = Field(description="Why, in words, the strongest first.")


class PaymentAnswer(Answered):
    """What is said of a payment."""

    score: float = Field(description="How likely it is fraud, from 0 to 1.")
    is_alert: bool = Field(description="Whether somebody should look: score >= threshold.")
    threshold: float


class MachineAnswer(Answered):
    """What is said of a machine at an hour."""

    failure_probability: float = Field(description="That it fails within 48 hours, calibrated.")
    is_alert: bool = Field(description="Whether it calls for a warning: probability >= threshold.")
    threshold: float
    remaining_hours: float | None = Field(description="Hours that are left, capped; null: unknown.")
    remaining_hours_low: float | None = Field(description="80 % of machines live longer than ...")
    remaining_hours_high: float | None = Field(description="... and shorter than these.")


class HouseholdAnswer(Answered):
    """What is said of a household."""

    segment_id: int
    segment_name: str
    confidence: float = Field(
        description="0 on the border of two segments, 1 in the middle of one."
    )


class _Record(BaseModel):
    """Strict: a text is no number, and a name that is not known is a mistake, not a thing to ignore."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_Amount = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


def _kind_of(name: str) -> Any:
    """The bounds of a feature, by the design's rules for names."""
    if name.startswith("is_"):
        return bool
    if "_count" in name or name.startswith("days_"):
        return Annotated[int, Field(ge=1, le=1_000_000_000)] if "customer" in name else _Count
    if "_share" in name or "_rate" in name:
        return _Share
    return _Number if "_trend" in name else _Amount


@dataclass(frozen=True)
class UseCase(Generic[M]):
    """A use case as the service sees it.

    Attributes:
        record: what a record must be.
        answer: what is said of one.
        champion: the model in force of a kind.
        kinds: those there are.
        score: answers for records, in their order, with reasons for all or for alerts alone.
    """

    record: type[BaseModel]
    answer: type[Answered]
    champion: Callable[[str], M]
    kinds: Callable[[], Collection[str]]
    score: Callable[[Callable[[str], M], Sequence[Any], bool], list[Answer]]

    def answers(self, records: Sequence[BaseModel], *, all_reasons: bool) -> list[Answer]:
        """One answer per record, without its position."""
        return self.score(self.champion, records, all_reasons)


# ---------------------------------------------------------------- fraud detection


def payment_record() -> type[BaseModel]:
    """A payment: the fifteen inputs that every fraud model has."""
    from orchestration.learning.fraud_detection import FEATURES

    fields: dict[str, Any] = {name: (_kind_of(name), ...) for name in FEATURES}
    fields["amount"] = (Annotated[float, Field(ge=0, lt=1_000_000, allow_inf_nan=False)], ...)
    return create_model("PaymentRecord", __base__=_Record, **fields)


def score_payments(
    champion: Callable[[str], fraud_scoring.Model], records: Sequence[Any], all_reasons: bool
) -> list[Answer]:
    """Answers for payments, all by the same model."""
    import numpy as np

    from orchestration.learning.fraud_detection import FEATURES

    model, inputs = champion(""), attrgetter(*FEATURES)
    matrix = np.array([inputs(record) for record in records], np.float64)
    scores = model.score(matrix)
    told = scores >= model.alert_threshold
    reasons = _reasons(told, all_reasons, lambda at: model.reasons(matrix[at], scores[at]))
    return [
        {
            "model_version": model.version,
            "reasons": reasons.get(number, []),
            "score": score,
            "is_alert": alert,
            "threshold": model.alert_threshold,
        }
        for number, (score, alert) in enumerate(zip(scores.tolist(), told.tolist(), strict=True))
    ]


def _reasons(
    alerts: Any, all_reasons: bool, why: Callable[[Any], Sequence[Sequence[str]]]
) -> dict[int, list[str]]:
    """Reasons by number of the record: they take most of the time, so only for those that are read."""
    import numpy as np

    at = np.arange(len(alerts)) if all_reasons else np.flatnonzero(alerts)
    if not len(at):
        return {}
    return dict(zip(at.tolist(), map(list, why(at)), strict=True))


# ---------------------------------------------------------------- predictive maintenance


def machine_record() -> type[BaseModel]:
    """A machine at an hour: its own features, and those of its sensors; what is left out is unknown."""
    from orchestration.learning.machine_health import MACHINE_FEATURES, SENSOR_FEATURES

    feature: Any = Literal[SENSOR_FEATURES]
    own: dict[str, Any] = dict.fromkeys(MACHINE_FEATURES, (_Number | None, None))
    return create_model(
        "MachineRecord",
        __base__=_Record,
        machine_model=(Annotated[str, Field(min_length=1, max_length=100)], ...),
        sensors=(
            Annotated[
                dict[
                    Annotated[str, Field(min_length=1, max_length=100)],
                    dict[feature, bool | _Number | None],
                ],
                Field(min_length=1, max_length=200),
            ],
            ...,
        ),
        **own,
    )


def machine_scores(
    kinds: Callable[[], Collection[str]],
) -> Callable[[Callable[[str], maintenance_scoring.Model], Sequence[Any], bool], list[Answer]]:
    """Answers for machines, each by the champion of its model of machine, of the kinds that there are."""

    def score(
        champion: Callable[[str], maintenance_scoring.Model],
        records: Sequence[Any],
        all_reasons: bool,
    ) -> list[Answer]:
        known, found = (
            set(kinds()),
            [Unfit("machine_model", "no such model of machine")] * len(records),
        )
        answers: list[Answer] = [*found]
        by_model: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            if record.machine_model in known:
                by_model.setdefault(record.machine_model, []).append(number)
        for machine_model, numbers in by_model.items():
            of_model = [records[number] for number in numbers]
            scored = _score_machines(champion(machine_model), of_model, all_reasons)
            for number, answer in zip(numbers, scored, strict=True):
                answers[number] = answer
        return answers

    return score


def _score_machines(
    model: maintenance_scoring.Model, records: Sequence[Any], all_reasons: bool
) -> list[Answer]:
    import math

    import numpy as np

    sensors = {sensor for sensor, _ in model.inputs if sensor}
    matrix = np.array([list(_inputs_of(record, model.inputs)) for record in records], np.float64)
    health = model.score(matrix)
    told = health.failure_probability >= model.warning_threshold
    reasons = _reasons(told, all_reasons, lambda at: model.reasons(matrix[at]))
    answers: list[Answer] = []
    columns = zip(*(column.tolist() for column in health), strict=True)
    for number, (record, (probability, *lives)) in enumerate(zip(records, columns, strict=True)):
        if not sensors & record.sensors.keys():
            answers.append(Unfit("sensors", "none that the model of this machine knows"))
            continue
        hours, low, high = (None if math.isnan(life) else life for life in lives)
        answers.append(
            {
                "model_version": model.version,
                "reasons": reasons.get(number, []),
                "failure_probability": probability,
                "is_alert": bool(told[number]),
                "threshold": model.warning_threshold,
                "remaining_hours": hours,
                "remaining_hours_low": low,
                "remaining_hours_high": high,
            }
        )
    return answers


def _inputs_of(record: Any, inputs: Sequence[tuple[str, str]]) -> Iterator[float | None]:
    nothing: Mapping[str, float] = {}
    for sensor, feature in inputs:
        if sensor:
            yield record.sensors.get(sensor, nothing).get(feature)
        else:
            yield getattr(record, feature)


# ---------------------------------------------------------------- customer segmentation


def household_record() -> type[BaseModel]:
    """A household at a month's end; null is what its SQL has where there is nothing to divide by."""
    from orchestration.learning.customer_segmentation import FEATURES

    fields: dict[str, Any] = {f.column: (_kind_of(f.column) | None, ...) for f in FEATURES}
    return create_model("HouseholdRecord", __base__=_Record, **fields)


@dataclass(frozen=True)
class RecencyRule:
    """What decides when no champion can be loaded: whether a household still comes."""

    version: str = BASELINE


def score_households(
    champion: Callable[[str], SegmentationModel | RecencyRule],
    records: Sequence[Any],
    all_reasons: bool,
) -> list[Answer]:
    """Answers for households, all by the same model, always with reasons: they cost nothing here."""
    import polars as pl

    from orchestration.learning.customer_segmentation import FEATURES, points, predict

    model = champion("")
    if isinstance(model, RecencyRule):
        return [_by_recency(record.days_since_last_purchase) for record in records]
    columns = [feature.column for feature in FEATURES]
    frame = pl.DataFrame(
        {name: [getattr(record, name) for record in records] for name in columns},
        schema=dict.fromkeys(columns, pl.Float64),
    ).with_columns(household_id=pl.int_range(pl.len()), as_of_at=pl.lit(model.as_of_at))
    names = {feature.column: (feature.high, feature.low) for feature in FEATURES}
    phrases = [names[feature.column] for feature in model.features]
    answers: list[Answer] = []
    for where, (segment, name, confidence) in zip(
        points(model, frame),
        predict(model, frame).select("segment_id", "segment_name", "confidence").iter_rows(),
        strict=True,
    ):
        # What marks the segment and the household alike.
        shared = where * model.centroids[segment - 1]
        strongest = [
            at for at in (-shared).argsort(kind="stable")[:_MOST_REASONS] if shared[at] > 0
        ]
        answers.append(
            {
                "model_version": model.version,
                "reasons": [
                    f"{phrases[at][int(where[at] < 0)]}: {abs(where[at]):.1f} standard deviations"
                    f" {'above' if where[at] > 0 else 'below'} the average household"
                    for at in strongest
                ],
                "segment_id": segment,
                "segment_name": name,
                "confidence": confidence,
            }
        )
    return answers


def _by_recency(days: int | None) -> Answer:
    lapsed = days is None or days > _LAPSED_DAYS
    return {
        "model_version": BASELINE,
        "reasons": ["no purchase is known" if days is None else f"last visit {days} days ago"],
        "segment_id": 2 if lapsed else 1,
        "segment_name": "Lapsed customers" if lapsed else "Active customers",
        "confidence": 0.0,
    }


@contextmanager
def opened(settings: Settings, say: Say) -> Iterator[dict[str, UseCase[Any]]]:
    """The use cases by name, their champions read again for as long as the block runs.

    Args:
        settings: which warehouse.
        say: told which model is in force when that changes, and what is wrong with one.
    """
    from orchestration.learning.customer_segmentation import SegmentationModel
    from orchestration.streaming.champion import Champions
    from orchestration.streaming.fraud_scoring import champion_of
    from orchestration.streaming.maintenance_scoring import champions_of
    from orchestration.streaming.maintenance_state import KnownPlant

    with ExitStack() as stack:
        payments = stack.enter_context(champion_of(settings, say))
        plant = stack.enter_context(KnownPlant(settings, say))
        machines = stack.enter_context(champions_of(settings, plant, say))
        households = stack.enter_context(
            Champions[Any](
                settings, "customer_segmentation", SegmentationModel.from_json,
                lambda _: RecencyRule(), say,
            )
        )  # fmt: skip

        def one() -> tuple[str]:
            return ("",)

        def models() -> Collection[str]:
            return {record.machine_model for record in plant.plant.machines.values()}

        yield {
            "fraud_detection": UseCase(
                payment_record(), PaymentAnswer, payments, one, score_payments
            ),
            "predictive_maintenance": UseCase(
                machine_record(), MachineAnswer, machines, models, machine_scores(models)
            ),
            "customer_segmentation": UseCase(
                household_record(), HouseholdAnswer, households, one, score_households
            ),
        }
