"""The champion in force: the trained model that scores payments, read again while the stream runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    from orchestration.streaming.fraud_scoring import Model

_EVERY_SECONDS = 60.0


class Champion:
    """Calling it gives the model in force at once; a thread looks for a new one every minute.

    Without a champion, or with one that cannot be loaded, it is the baseline rule; a new one that
    cannot be loaded leaves the former in force. Use it in `with`.

    Args:
        settings: which warehouse.
        say: told which model is in force when that changes, and what is wrong with one.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        from orchestration.learning.fraud_detection import BaselineRule

        self._settings, self._say = settings, say
        self._model: Model = BaselineRule()
        self._trouble = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="champion", daemon=True)

    def __call__(self) -> Model:
        """The model in force."""
        return self._model

    def __enter__(self) -> Champion:
        self._look()
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
        while not self._stopping.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        import duckdb

        from orchestration.learning.fraud_detection import Model as Trained

        try:
            found = self._stored()
            if found is None:
                trouble = "no champion is trained yet"
            elif found[0] == self._model.version:
                return
            else:
                self._model, trouble = Trained.from_json(found[1]), ""
        except (MendableError, duckdb.Error, ValueError, TypeError, KeyError) as error:
            trouble = f"the champion cannot be loaded ({type(error).__name__})"
        if not trouble or trouble != self._trouble:
            self._say(f"{trouble and trouble + '; '}scoring with {self._model.version}")
        self._trouble = trouble

    def _stored(self) -> tuple[str, str] | None:
        """The champion's version and parameters; None if there is none."""
        connection = connect(self._settings, read_only=True)
        try:
            if not table_exists(connection, "trained_models", "fraud_detection"):
                return None
            return connection.execute(
                "select model_version, parameters from trained_models.fraud_detection"
                " where is_champion order by as_of_at desc limit 1"
            ).fetchone()
        finally:
            connection.close()
