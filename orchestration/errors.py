"""The one exception a person can mend: it names the thing, what was expected, what arrived, what to do."""

from __future__ import annotations


class MendableError(Exception):
    """Something is wrong that the person running Watershed can put right.

    The command line prints it without a stack trace, Dagster shows it as the failure's description,
    and neither retries it. Never put a secret or a personal datum into any part.

    Args:
        thing: what it is about, as the person knows it (`retail_db.transactions`, a setting, a path).
        expected: what should have been there.
        arrived: what was there instead.
        mend: what to do about it, ideally a command.
    """

    def __init__(self, thing: str, *, expected: str, arrived: str, mend: str) -> None:
        self.thing, self.expected, self.arrived, self.mend = thing, expected, arrived, mend
        super().__init__(
            f"{thing}\n  expected: {expected}\n  arrived:  {arrived}\n  to mend:  {mend}"
        )


class PassingError(MendableError):
    """What is wrong may be over in a while: worth another try, unlike every other mendable error."""


class SourceUnavailableError(PassingError):
    """A source system did not answer."""


class WarehouseBusyError(PassingError):
    """Other writers of the warehouse were at work for too long."""
