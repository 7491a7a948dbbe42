"""What a run prints in a terminal: the steps' own messages, not every event."""

import logging
import sys
from typing import Any

import dagster as dg

_OF_DAGSTER_DBT = ("A dbt subset", "Copying `", "Running dbt command", "Finished dbt command")
"""How the messages begin that dagster-dbt says of itself; they stand in the UI."""


class _Lines(logging.Handler):
    """Writes a line per message of our own steps, and per warning of anybody's, to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        if event is not None:
            if event.is_step_up_for_retry:
                print(f"  {event.step_key}: will be tried again", file=sys.stderr, flush=True)
        else:
            message = str(meta.get("orig_message", record.getMessage()))
            if record.levelno >= logging.WARNING or not message.startswith(_OF_DAGSTER_DBT):
                print(f"  {message}", file=sys.stderr, flush=True)


@dg.logger
def console(init_context: dg.InitLoggerContext) -> logging.Logger:
    """The console of every run, in a terminal and in the run's raw log in the UI."""
    logging.getLogger("dagster.builtin").propagate = False  # it would say everything twice
    logger = logging.getLogger("watershed.run")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_Lines()]
    return logger
