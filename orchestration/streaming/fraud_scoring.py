"""Fraud detection on the stream: features of a payment, its score, and an alert if it is high enough.

Where it begins: behind the last payment of which a score was published, with the state that the
landed payments before it make. So nothing is lost when it is killed, or when landing was ahead; a
payment that was scored is not scored again, except for what was not confirmed when it died.

A payment that comes late, or a label that does, changes what earlier scores were made of. The decision
stays; the corrected features follow as the next revision, with what would be said of them now.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from orchestration.connectors.event_consumer import TOPIC_ID, Consumer
from orchestration.connectors.event_stream import EventTopic
from orchestration.settings import Settings
from orchestration.streaming import fraud_state
from orchestration.streaming.champion import Champions
from orchestration.streaming.engine import Message, Scored
from orchestration.streaming.events import UnfitError, at_time, decoder_of, microseconds
from orchestration.streaming.fraud_events import (
    Alert,
    PaymentEvent,
    ReportEvent,
    Score,
    cents_of,
)
from orchestration.streaming.payment_windows import DAY, LATENESS, Payment, PaymentWindows, Row
from orchestration.streaming.publisher import UNCONFIRMED
from orchestration.streaming.topics import topic_of, unlanded

if TYPE_CHECKING:
    import numpy as np

    from orchestration.connectors.event_log import Event

TOPICS = ("payments", "fraud_reports", "scores", "alerts")
_AGREEING, _HELD = 3, 10
"""One payment that is more than a day ahead has a wrong clock; when so many terminals agree within a day,
among the last held, time has moved on, as after a silence."""
_FEATURES = Score.__struct_fields__[5:19]


class Model(Protocol):
    """What scores: learning's `Model`, or its `BaselineRule`."""

    @property
    def version(self) -> str:
        """Its name in the scores."""

    @property
    def alert_threshold(self) -> float:
        """The least score that is an alert."""

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """A score in [0, 1] per row of the 15 features."""

    def reasons(self, matrix: np.ndarray, scores: np.ndarray, most: int = 3) -> list[list[str]]:
        """Per row what speaks for fraud, in words."""


Changed = dict[int, tuple[Payment, Row]]
"""By transaction_id, payments and what their features are now."""


class _Said(NamedTuple):
    """The last score of a payment: when it was made, the revision, where the payment stands."""

    at: int
    revision: int
    position: str


def stream_topic(settings: Settings, topic: str) -> EventTopic:
    """A topic of the payments stream."""
    return topic_of(settings, fraud_state.STREAM, topic)


def champion_of(settings: Settings, say: Callable[[str], None]) -> Champions[Model]:
    """The model in force, for as long as its `with` runs."""
    from orchestration.learning.fraud_detection import BaselineRule
    from orchestration.learning.fraud_detection import Model as Trained

    return Champions[Model](
        settings, "fraud_detection", Trained.from_json, lambda _: BaselineRule(), say
    )


class FraudScoring:
    """The use case. Not for several threads.

    Args:
        settings: which warehouse and stream.
        champion: the model in force; asked once per batch, so it must answer at once.
    """

    name = "payments"

    def __init__(self, settings: Settings, champion: Callable[[], Model]) -> None:
        self._settings, self._champion = settings, champion
        self.topics = (
            stream_topic(settings, "fraud_reports"),
            stream_topic(settings, "payments"),
        )
        self._decode = decoder_of(PaymentEvent)
        self._decode_report = decoder_of(ReportEvent)
        self._encode = msgspec.json.Encoder().encode
        self._begin()

    def _begin(self) -> None:
        self.windows = PaymentWindows()
        self._said: OrderedDict[int, _Said] = OrderedDict()
        self._ahead: deque[tuple[Payment, str]] = deque(maxlen=_HELD)
        self._reported = 0
        self._before: dict[int, int] = {}
        """Per partition, where the scores of an earlier run ended, until that is reached."""
        self._published: set[str] = set()
        self._logged: dict[int, Row] = {}
        self._known: Changed = {}

    def is_behind(self, topic: str) -> bool:
        """Reports are read on as long as they are behind the payments: so no label comes late."""
        return self._reported < self.windows.newest

    def start(self, consumers: Sequence[Consumer]) -> Iterator[Scored]:
        """Rebuild the state and find the place to begin."""
        self._begin()
        self._warm_up()
        reports, payments = consumers
        with fraud_state.snapshot(self._settings) as landed:
            scored = landed.scored()
            tail = self._tail(landed, scored)
            position, known = landed.position("payments"), bool(scored)
            starts = {
                str(part): min(
                    max(0, end - UNCONFIRMED),
                    int(position.get(str(part), end if not position else 0)),
                )
                for part, end in scored.items()
            }
            topic_id = {TOPIC_ID: position[TOPIC_ID]} if TOPIC_ID in position else {}
            payments.start(starts | topic_id if known else {})
            begins = {int(p): at for p, at in payments.position.items() if p != TOPIC_ID}
            self.windows.rebuild(
                landed.payments(begins if payments.first_time else None), landed.labels()
            )
            reports.start(landed.position("fraud_reports"))
            self._recall(landed, tail)
        self._before = {p: end for p, end in scored.items() if begins.get(p, end) < end}
        yield Scored() if self._before else self._reconciled()

    def _warm_up(self) -> None:
        """Let the model say something once: the first time takes as long as fifty later ones."""
        import numpy as np

        model = self._champion()
        nothing = np.zeros((1, len(_FEATURES) + 1))
        model.reasons(nothing, model.score(nothing))

    def update(self, events: Sequence[Event], received: float) -> Scored:
        """Score payments, or take in reports."""
        scored = Scored()
        if events[0].topic == self.topics[0].topic:
            return self._corrected(self._take_reports(events, scored), scored)
        fresh: list[tuple[Payment, Row, str]] = []
        changed: Changed = {}
        horizon = self.windows.newest - LATENESS
        for event in events:
            place = f"{event.topic}/{event.partition}/{event.offset}"
            try:
                for payment, where in self._accept(event, place, scored.set_aside):
                    self._note(self.windows.add(payment), changed)
                    fresh.append((payment, self.windows.features(payment.transaction_id), where))
            except UnfitError as reason:
                scored.set_aside[str(reason)] += 1
        self._score(fresh, received, scored)
        self._corrected(changed, scored)
        if self._before:
            return self._caught_up(events, scored)
        while self._said and next(iter(self._said.values())).at < horizon:
            self._said.popitem(last=False)  # too old to be corrected
        return scored

    def _accept(self, event: Event, place: str, aside: Counter[str]) -> list[tuple[Payment, str]]:
        """The payments that are to be scored now; mostly this one.

        Raises:
            UnfitError: it is set aside.
        """
        came = self._decode(event.value)
        payment = Payment(
            came.transaction_id,
            microseconds(came.transaction_at),
            came.customer_id,
            came.terminal_id,
            cents_of(came.amount),
        )
        newest = self.windows.newest
        if payment.transaction_id in self.windows:
            raise UnfitError("duplicate")
        if newest and payment.at > newest + DAY:
            if any(one.transaction_id == payment.transaction_id for one, _ in self._ahead):
                raise UnfitError("duplicate")
            self._ahead.append((payment, place))
            near = [pair for pair in self._ahead if abs(pair[0].at - payment.at) <= DAY]
            if len({one.terminal_id for one, _ in near}) < _AGREEING:
                aside["clock in the future"] += 1
                return []
            for pair in near:
                self._ahead.remove(pair)
            aside["clock in the future"] -= len(near) - 1
            return sorted(near, key=lambda pair: pair[0].at)
        if payment.at < newest - LATENESS:
            raise UnfitError("more than 7 days late")
        return [(payment, place)]

    def _take_reports(self, events: Sequence[Event], scored: Scored) -> Changed:
        changed: Changed = {}
        for event in events:
            try:
                report = self._decode_report(event.value)
                self._reported = microseconds(report.reported_at)
            except UnfitError as reason:
                scored.set_aside[f"report: {reason}"] += 1
                continue
            self._note(
                self.windows.label(report.transaction_id, report.is_fraud, self._reported), changed
            )
        return changed

    def _score(
        self, fresh: Sequence[tuple[Payment, Row, str]], received: float, scored: Scored
    ) -> None:
        """Score payments that have just come, those already published excepted."""
        unscored = []
        for payment, row, place in fresh:
            if place in self._published:
                self._said.setdefault(payment.transaction_id, _Said(payment.at, 0, place))
            else:
                unscored.append((payment, row, _Said(payment.at, 0, place)))
        self._say(unscored, scored, received)

    def _note(self, payments: Sequence[Payment], changed: Changed) -> None:
        """Note what the features of payments are now: later they may be too old to be told."""
        for one in payments:
            changed[one.transaction_id] = (one, self.windows.features(one.transaction_id))

    def _corrected(self, changed: Changed, scored: Scored) -> Scored:
        """Add the corrected features of payments that were scored before, as their next revision."""
        if self._before:  # they are compared with what was published once that is reached
            self._known |= changed
            return scored
        again = []
        for number, (payment, row) in changed.items():
            said = self._said.get(number)
            if said is not None:
                following = said._replace(revision=said.revision + 1)
                again.append((payment, row, following))
        self._say(again, scored)
        scored.corrected += len(again)
        return scored

    def _say(
        self,
        payments: Sequence[tuple[Payment, Row, _Said]],
        scored: Scored,
        received: float | None = None,
    ) -> None:
        """Score payments and make the messages: alerts first, none for a revision."""
        if not payments:
            return
        import numpy as np

        model = self._champion()
        matrix = np.array([row for _, row, _ in payments], np.float64)
        values = model.score(matrix)
        alerts = values >= model.alert_threshold
        reasons: dict[int, str] = {}
        if alerts.any():
            high = np.flatnonzero(alerts)
            told = model.reasons(matrix[high], values[high])
            reasons = {int(n): "; ".join(texts) for n, texts in zip(high, told, strict=True)}
        now = datetime.now(UTC)
        latency = 0.0 if received is None else max(0.0, 1000 * (now.timestamp() - received))
        urgent: list[Message] = []
        others: list[Message] = []
        version, encode = model.version, self._encode
        make: Callable[..., Score] = Score
        for number, ((payment, row, said), value) in enumerate(
            zip(payments, values.tolist(), strict=True)
        ):
            one, at, customer, terminal, _ = payment
            _, revision, place = said
            when, why, key = at_time(at), reasons.get(number, ""), b"%d" % customer
            is_alert = number in reasons
            if is_alert and revision == 0:
                alert = Alert(place, one, when, customer, terminal, row[0], value, why, version)
                urgent.append(Message("alerts", key, encode(alert)))
            score = make(
                one, when, customer, terminal, *row, value, is_alert, why, version, now, latency,
                revision, place,
            )  # fmt: skip
            others.append(Message("scores", key, encode(score)))
            self._said[one] = said
            if self._before:
                self._logged[one] = row
        scored.messages += urgent + others
        if received is not None:
            scored.scored += len(payments)
            scored.alerts += len(urgent)

    def _tail(self, landed: fraud_state.Snapshot, scored: dict[int, int]) -> list[Score]:
        """The scores that were published but have not landed; `scored` is moved on by them."""
        found = unlanded(stream_topic(self._settings, "scores"), landed.position("scores"), Score)
        for score in found:
            part, offset = map(int, score.payment_position.split("/")[-2:])
            scored[part] = max(scored.get(part, 0), offset + 1)
        return found

    def _recall(self, landed: fraud_state.Snapshot, tail: Sequence[Score]) -> None:
        """Remember what was said of the payments that can still be corrected."""
        since = self.windows.newest - LATENESS
        columns = landed.scores(since).to_pydict()
        said: dict[int, tuple[_Said, Row]] = {}
        if columns:
            names = ("transaction_id", "at", "revision", "payment_position", "amount", *_FEATURES)
            for one, at, revision, place, *known in zip(*(columns[n] for n in names), strict=True):
                said[one] = (_Said(at, revision, place), tuple(known))
                self._published.add(place)
        for score in tail:
            values = msgspec.structs.astuple(score)
            at = microseconds(score.transaction_at)
            self._published.add(score.payment_position)
            before = said.get(score.transaction_id)
            if at >= since and (before is None or before[0].revision < score.revision):
                entry = _Said(at, score.revision, score.payment_position)
                said[score.transaction_id] = (entry, values[4:19])
        for one, (entry, row) in sorted(said.items(), key=lambda item: item[1][0].at):
            self._said[one] = entry
            self._logged[one] = row
            if one in self.windows:
                self._note([self.windows.payment(one)], self._known)

    def _caught_up(self, events: Sequence[Event], scored: Scored) -> Scored:
        """Once all that an earlier run published is behind, correct what it did not correct."""
        for event in events:
            if event.offset + 1 >= self._before.get(event.partition, event.offset + 2):
                del self._before[event.partition]
        if self._before:
            return scored
        corrections = self._reconciled()
        scored.messages += corrections.messages
        scored.corrected += corrections.corrected
        return scored

    def _reconciled(self) -> Scored:
        """Corrections of the scores that were logged with features other than those known now."""
        changed = {
            one: self._known[one]
            for one, row in self._logged.items()
            if one in self._known and self._known[one][1] != row
        }
        self._logged, self._known, self._published = {}, {}, set()
        return self._corrected(changed, Scored())
