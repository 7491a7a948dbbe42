"""The champions in force: the trained models that score a stream, followed in the registry while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from orchestration.errors import MendableError, PassingError
from orchestration.settings import Settings

_EVERY_SECONDS = 0.5
"""An alias is read in milliseconds: who goes back to a former champion has it in force within a second."""


class Versioned(Protocol):
    """What every model has."""

    @property
    def version(self) -> str:
        """Its name in what it says."""


M = TypeVar("M", bound=Versioned)


class Watch:
    """Looks at once, and again every so often in a thread, for as long as its `with` runs."""

    def __init__(self, name: str, every_seconds: float = 60.0) -> None:
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def look(self) -> None:
        """Take in what is new. Must not raise."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._every_seconds):
            self.look()


class Champions(Watch, Generic[M]):
    """Calling it with a kind gives the model in force for it at once.

    Without a champion, or with one that cannot be loaded, that is the baseline; a new one that cannot
    be loaded leaves the former in force. Use it in `with`.

    Args:
        settings: which warehouse.
        use_case: whose registered models.
        load: makes a model of its JSON.
        baseline: the model of a kind that has no champion.
        say: told which model is in force when that changes, and what is wrong with one.
        kind: the column that tells kinds of models apart; without one there is the kind "".
        kinds: those to have a model for.
    """

    def __init__(
        self,
        settings: Settings,
        use_case: str,
        load: Callable[[str], M],
        baseline: Callable[[str], M],
        say: Callable[[str], None],
        *,
        kind: str = "",
        kinds: Callable[[], Collection[str]] = lambda: ("",),
    ) -> None:
        super().__init__("champions", _EVERY_SECONDS)
        self._settings, self._use_case, self._load = settings, use_case, load
        self._baseline, self._say, self._kinds = baseline, say, kinds
        self._models: dict[str, M] = {}
        self._troubles: dict[str, str] = {}
        self._refused: dict[str, object] = {}
        self._seen: object = None

    def __call__(self, kind: str = "") -> M:
        """The model in force."""
        model = self._models.get(kind)
        if model is None:
            model = self._models[kind] = self._baseline(kind)
        return model

    def look(self) -> None:
        """Take in the champions that are new."""
        from orchestration.registry import store

        written = store.last_written(self._settings)
        seen = None if written is None else (written, frozenset(self._kinds()))
        if seen is not None and seen == self._seen:
            return  # a look costs a call of the file system, not milliseconds of a thread that scores
        aliases, failure = {}, ""
        try:
            aliases = store.champions(self._settings, self._use_case)
        except MendableError as error:
            failure = _unloadable(error)
        self._seen = None if failure else seen
        for kind in {*self._kinds(), *aliases}:
            trouble, model = failure or "no champion is in force yet", None
            if kind in aliases:
                one = aliases[kind]
                if one.version == self(kind).version:
                    self._troubles.pop(kind, None)
                    continue
                if self._refused.get(kind) == one:
                    continue  # told already; its files do not change
                try:
                    text = store.parameters_of(self._settings, self._use_case, one)
                    model, trouble = self._load(text), ""
                except (MendableError, ValueError, TypeError, KeyError) as error:
                    trouble = _unloadable(error)
                    if isinstance(error, PassingError):
                        self._seen = None
                    else:
                        self._refused[kind] = one
            if model is not None:
                self._models[kind] = model
            if not trouble or trouble != self._troubles.get(kind):
                of = f" for {kind}" if kind else ""
                self._say(f"{trouble and trouble + '; '}scoring with {self(kind).version}{of}")
            self._troubles[kind] = trouble


def _unloadable(error: Exception) -> str:
    return f"the champion cannot be loaded ({type(error).__name__})"
