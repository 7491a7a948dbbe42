"""The messages of fraud detection: what is read is typed and bounded, and what does not fit has a reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_BYTES = 1 << 20
"""A larger message is set aside; landing does the same."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class PaymentEvent(msgspec.Struct):
    """A payment as it is made; its bounds are those of its contract in defs/raw/payments_stream."""

    transaction_id: Number
    transaction_at: datetime
    customer_id: Number
    terminal_id: Number
    amount: Annotated[float, msgspec.Meta(ge=0, lt=1_000_000)]


class ReportEvent(msgspec.Struct):
    """What a payment was found to be, and when."""

    transaction_id: Number
    is_fraud: bool
    reported_at: datetime


class Score(msgspec.Struct):
    """What was said of a payment, with the features that it was said from."""

    transaction_id: int
    transaction_at: datetime
    customer_id: int
    terminal_id: int
    amount: float
    is_weekend: bool
    is_night: bool
    customer_payments_count_1d: int
    customer_payments_count_7d: int
    customer_payments_count_30d: int
    customer_amount_avg_1d: float
    customer_amount_avg_7d: float
    customer_amount_avg_30d: float
    terminal_payments_count_1d: int
    terminal_payments_count_7d: int
    terminal_payments_count_30d: int
    terminal_fraud_share_1d: float
    terminal_fraud_share_7d: float
    terminal_fraud_share_30d: float
    score: float
    is_alert: bool
    reasons: str
    model_version: str
    scored_at: datetime
    latency_ms: float
    revision: int
    payment_position: str


class Alert(msgspec.Struct):
    """A payment to look at; the same `alert_id` is the same alert."""

    alert_id: str
    transaction_id: int
    transaction_at: datetime
    customer_id: int
    terminal_id: int
    amount: float
    score: float
    reasons: str
    model_version: str


class UnfitError(Exception):
    """A message that is set aside; its text is the reason, in words that do not quote it."""


_Event = TypeVar("_Event", PaymentEvent, ReportEvent)


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


def cents_of(amount: float) -> int:
    """An amount in cents.

    Raises:
        UnfitError: it has more than two decimals, which the contract does not allow.
    """
    cents = round(amount * 100)
    if abs(amount * 100 - cents) > 1e-4:
        raise UnfitError("unfit amount")
    return cents
