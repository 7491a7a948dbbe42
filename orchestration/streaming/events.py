"""What the messages of every use case share: typed and bounded reading, times, and reasons for what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_BYTES = 1 << 20
"""A larger message is set aside; landing does the same."""


class UnfitError(Exception):
    """A message that is set aside; its text is the reason, in words that do not quote it."""


_Event = TypeVar("_Event", bound=msgspec.Struct)


def decoder_of(kind: type[_Event]) -> Callable[[bytes | None], _Event]:
    """What makes an event of a message's bytes, or raises `UnfitError`.

    Texts that hold a number or a truth are taken as such, as landing does.
    """
    decode = msgspec.json.Decoder(kind, strict=False).decode

    def decoded(value: bytes | None) -> _Event:
        if value is None:
            raise UnfitError("no value")
        if len(value) > MOST_BYTES:
            raise UnfitError("too large")
        try:
            return decode(value)
        except msgspec.ValidationError as error:
            told, _, field = str(error).partition(" - at `$.")
            field = field.rstrip("`") or told.rpartition("field ")[2].strip("`")
            missing = "missing" if told.startswith("Object missing") else "unfit"
            known = field if field in kind.__struct_fields__ else "object"
            raise UnfitError(f"{missing} {known}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnfitError("malformed JSON") from None

    return decoded


def microseconds(at: datetime) -> int:
    """Since 1970 UTC; a time without a zone is UTC.

    Raises:
        UnfitError: it is of another century, which the contract does not allow.
    """
    if not 2000 <= at.year < 2100:
        raise UnfitError("time of another century")
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    since = at - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def at_time(microseconds_: int) -> datetime:
    """The time so many microseconds after 1970 UTC."""
    return EPOCH + timedelta(microseconds=microseconds_)
