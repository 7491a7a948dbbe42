"""dbt-duckdb plugin: dbt opens the same warehouse, settings and writer's lock as everything else."""

from __future__ import annotations

from typing import Any

from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.flags import get_flags
from dbt_common.exceptions import DbtRuntimeError
from duckdb import DuckDBPyConnection

from orchestration.errors import MendableError
from orchestration.settings import load_settings
from orchestration.warehouse.connect import acquire_writer_lock, attach

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
        """Attach the warehouse; for a command that writes, wait for the writer's lock first."""
        command = getattr(get_flags(), "WHICH", None)
        try:
            settings = load_settings()
            if command in WRITING_COMMANDS and not self._read_only:
                self._lock = acquire_writer_lock(settings, f"dbt {command}")
            attach(conn, settings, read_only=self._read_only)
        except MendableError as error:
            raise DbtRuntimeError(str(error)) from None
