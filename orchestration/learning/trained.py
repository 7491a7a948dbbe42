"""What every trained model is: texts and numbers under a version, written and read as JSON."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar, Self

from orchestration.errors import MendableError


class TrainedModel(ABC):
    """A model of a use case as of a time. It holds data only, so that loading one runs nothing."""

    USE_CASE: ClassVar[str]
    as_of_at: datetime

    @cached_property
    def version(self) -> str:
        """`<use case>-<what it is of>-<8 hex digits of the contents' SHA-256>`."""
        digest = hashlib.sha256(_canonical(self._contents()).encode()).hexdigest()
        return f"{self.USE_CASE}-{self._of()}-{digest[:8]}"

    def to_json(self) -> str:
        """Everything needed to score, as canonical JSON."""
        return _canonical({**self._contents(), "version": self.version})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The model that `to_json` wrote.

        Raises:
            MendableError: the text is not such a model, does not match its version, or cannot score
                what this version of the project gives it.
        """
        try:
            parsed = json.loads(text)
            model = cls._parsed(parsed)
            if parsed["version"] != model.version:
                raise ValueError("its contents do not match its version")
            return model._tried()
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise MendableError(
                f"the parameters of a {cls.USE_CASE.replace('_', ' ')} model",
                expected="the JSON that the training wrote, unchanged",
                arrived=f"{type(error).__name__}: {error}",
                mend=f"materialise trained_models/{cls.USE_CASE} again",
            ) from None

    def _of(self) -> str:
        """What tells it from the use case's other models: its day."""
        return f"{self.as_of_at:%Y-%m-%d}"

    @abstractmethod
    def _contents(self) -> dict[str, Any]:
        """What JSON can hold of it, all of it."""

    @classmethod
    @abstractmethod
    def _parsed(cls, parsed: dict[str, Any]) -> Self:
        """The model of `_contents`; a ValueError, TypeError or KeyError says why there is none."""

    def _tried(self) -> Self:
        """It, if it can score; a ValueError, TypeError or KeyError says why not."""
        return self


def _canonical(contents: dict[str, Any]) -> str:
    return json.dumps(contents, sort_keys=True, separators=(",", ":"), allow_nan=False)
