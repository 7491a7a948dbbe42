"""dbt-duckdb plugin: dbt opens the same warehouse, settings and locks as everything else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.exceptions import DbtRuntimeError
from duckdb import DuckDBPyConnection
from duckdb.sqltypes import BOOLEAN

from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import acquire_builder_lock, acquire_writer_lock, attach
from orchestration.warehouse.holding import hold_rows

if TYPE_CHECKING:
    from filelock import BaseFileLock

WRITING_COMMANDS = frozenset(
    {"build", "run", "seed", "snapshot", "test", "clone", "retry", "run-operation"}
)
"""dbt commands that may write; the others (`docs generate`, `compile`, `show`, ...) only read."""


class Plugin(BasePlugin):
    """Attaches the warehouse as `lake` before dbt looks for it."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        """Keep the database in memory, and so open for as long as dbt runs."""
        # dagster-dbt makes the path absolute when it fetches metadata, as if it were a file.
        self.creds.path = ":memory:"

    def update_connection_config(self, creds: Any, config: dict[str, Any]) -> None:
        """Give DuckDB the memory limit and threads from the settings."""
        self._read_only = config.pop("access_mode", None) == "READ_ONLY"
        settings = load_settings()
        config["memory_limit"] = settings.memory_limit
        if settings.threads:
            config["threads"] = settings.threads

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        """Attach the warehouse; a command that writes first waits until no other builds.

        It has the writer's lock until its first `pass_turn()` (dbt creates schemas before), and later from each
        `take_turn()` to the `pass_turn()` after it: macros/turns.sql.
        """
        command = getattr(get_flags(), "WHICH", None)
        try:
            self._settings = load_settings()
            self._doing = f"dbt {command}"
            self._turn: BaseFileLock | None = None
            self._one_thread = threading.Lock()
            for turn in (self._take_turn, self._pass_turn):
                conn.create_function(turn.__name__[1:], turn, [], BOOLEAN, side_effects=True)
            if command in WRITING_COMMANDS and not self._read_only:
                self._holds = hold_rows(self._settings, self._doing)  # to the end of the process
                self._builds = acquire_builder_lock(self._settings, self._doing)
                self._take_turn()
            attach(conn, self._settings, read_only=self._read_only)
        except MendableError as error:
            raise DbtRuntimeError(str(error)) from None

    def _take_turn(self) -> bool:
        with self._one_thread:
            if (
                self._turn is not None and self._turn.is_locked
            ):  # another thread's, or of one that failed
                self._turn.acquire()
            else:
                self._turn = acquire_writer_lock(self._settings, self._doing)
        return True

    def _pass_turn(self) -> bool:
        if self._turn is not None:
            self._turn.release()
        return True
