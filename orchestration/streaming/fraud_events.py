"""The messages of fraud detection: what is read is typed and bounded, and what does not fit has a reason."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from orchestration.streaming.events import UnfitError

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


def cents_of(amount: float) -> int:
    """An amount in cents.

    Raises:
        UnfitError: it has more than two decimals, which the contract does not allow.
    """
    cents = round(amount * 100)
    if abs(amount * 100 - cents) > 1e-4:
        raise UnfitError("unfit amount")
    return cents
