"""What the registry must know of each use case's models: how to load one, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from orchestration.errors import MendableError
from orchestration.layers import USE_CASES


@dataclass(frozen=True)
class Described:
    """One use case.

    Attributes:
        use_case: its name; its models stand in `trained_models.<use_case>`.
        kind: the column that tells kinds of models apart; empty if there is one kind, "".
        training_set: what it learns from.
        load: a model from the JSON that its `to_json` wrote; runs nothing.
        inputs: names of a model's inputs, in their order; all are numbers.
        outputs: names and MLflow types of what it says.
    """

    use_case: str
    kind: str
    training_set: str
    load: Callable[[str], Any]
    inputs: Callable[[Any], Sequence[str]]
    outputs: tuple[tuple[str, str], ...]

    def name_of(self, kind: str) -> str:
        """The registered model's name; what MLflow allows in none is percent-encoded."""
        from urllib.parse import quote

        return f"{self.use_case}.{quote(kind, safe=' ')}" if kind else self.use_case

    def kind_of(self, name: str) -> str:
        """The kind of a registered model's name."""
        from urllib.parse import unquote

        return unquote(name.removeprefix(self.use_case).removeprefix("."))


@cache
def described(use_case: str) -> Described:
    """The description of a use case.

    Raises:
        MendableError: there is no such use case.
    """
    if use_case == "fraud_detection":
        from orchestration.learning import fraud_detection

        return Described(
            use_case, "", "train_fraud_detection", fraud_detection.Model.from_json,
            lambda model: fraud_detection.FEATURES, (("score", "double"),),
        )  # fmt: skip
    if use_case == "predictive_maintenance":
        from orchestration.learning import machine_health

        return Described(
            use_case, "machine_model", "train_predictive_maintenance",
            machine_health.Model.from_json,
            lambda model: [".".join(filter(None, one)) for one in model.inputs],
            tuple((name, "double") for name in machine_health.Health._fields),
        )  # fmt: skip
    if use_case == "customer_segmentation":
        from orchestration.learning import customer_segmentation

        return Described(
            use_case, "", "train_customer_segmentation",
            customer_segmentation.SegmentationModel.from_json,
            lambda model: [feature.column for feature in customer_segmentation.FEATURES],
            (("segment_id", "integer"), ("segment_name", "string"), ("confidence", "double")),
        )  # fmt: skip
    raise MendableError(
        f"use case {use_case}",
        expected=f"one of {', '.join(USE_CASES)}",
        arrived=use_case,
        mend="make models lists what is registered",
    )
