"""The windows of feat_payment__windows, kept up to date payment by payment; the SQL is the definition.

Everything is an integer until a feature is made of it: microseconds since 1970 UTC, and cents. So
what comes out is bit for bit what the SQL says.

- A customer's payments stand in the order of time and transaction_id, with running totals of cents;
  a terminal's in the order of time. A window is two places in them.
- A label is kept by when it was known. Only the spans in which a payment is known to be fraud are
  looked at, and they are few.
- A payment that comes late is put in its place, and the payments whose windows it belongs to are
  said to have changed. So does a label that comes after payments that should have known it. Both
  reach back `LATENESS`; what is older can no longer be told exactly, and is counted instead.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

DAY = 86_400_000_000
DELAY = 7 * DAY
"""How far back from a payment its terminal's windows end."""
LENGTHS = (DAY, 7 * DAY, 30 * DAY)
LATENESS = 7 * DAY
"""How late a payment may come and still be put in its place."""
RETENTION = DELAY + LENGTHS[-1] + LATENESS
NEVER = 1 << 62

_PENDING = 1_000_000
_SWEPT = 2

Row = tuple[float | int | bool, ...]
"""The 15 features in the order of learning's `FEATURES`: amount, is_weekend, is_night, then per
length the customer's counts, the customer's averages, the terminal's counts, the terminal's shares."""
Spans = list[tuple[int, int]]


class Payment(NamedTuple):
    """A payment; `at` in microseconds since 1970 UTC, `cents` the amount."""

    transaction_id: int
    at: int
    customer_id: int
    terminal_id: int
    cents: int


class _Customer:
    """A customer's payments in order; `totals` are the cents up to and with each."""

    __slots__ = ("before", "ids", "number", "terminals", "times", "totals")

    def __init__(self, number: int) -> None:
        self.number, self.before = number, 0
        self.times, self.ids, self.totals, self.terminals = (array("q") for _ in range(4))


class _Terminal:
    """A terminal's payments in order, and (time of payment, known from, known until) of its frauds."""

    __slots__ = ("frauds", "ids", "number", "times")

    def __init__(self, number: int) -> None:
        self.number = number
        self.times, self.ids = array("q"), array("q")
        self.frauds: list[tuple[int, int, int]] = []


class PaymentWindows:
    """The state of all customers and terminals. Not for several threads.

    Attributes:
        newest: the time of the latest payment; 0 before the first.
        uncorrected: payments that changed, but are older than `LATENESS`.
        forgotten: labels dropped because their payments did not come.
    """

    def __init__(self) -> None:
        self.newest = self.uncorrected = self.forgotten = 0
        self._customers: dict[int, _Customer] = {}
        self._terminals: dict[int, _Terminal] = {}
        self._of: dict[int, _Customer] = {}
        self._labels: dict[int, int | tuple[int, ...]] = {}
        self._pending: dict[int, int | tuple[int, ...]] = {}
        self._sweep: Iterator[_Customer | _Terminal] = iter(())

    def __contains__(self, transaction_id: int) -> bool:
        return transaction_id in self._of

    def __len__(self) -> int:
        return len(self._of)

    def add(self, payment: Payment) -> list[Payment]:
        """Put a payment in its place.

        Args:
            payment: one that is not known yet, at most `LATENESS` older than the newest.

        Returns:
            The payments whose features changed, which came before it.
        """
        number, at, customer_id, terminal_id, cents = payment
        customer = self._customers.get(customer_id)
        if customer is None:
            customer = self._customers[customer_id] = _Customer(customer_id)
        terminal = self._terminals.get(terminal_id)
        if terminal is None:
            terminal = self._terminals[terminal_id] = _Terminal(terminal_id)
        changed: dict[int, None] = {}
        times = customer.times
        if not times or (times[-1], customer.ids[-1]) < (at, number):
            times.append(at)
            customer.ids.append(number)
            customer.totals.append((customer.totals or (customer.before,))[-1] + cents)
            customer.terminals.append(terminal_id)
        else:
            place = bisect_left(times, at)
            while times[place] == at and customer.ids[place] < number:
                place += 1
            before = customer.totals[place - 1] if place else customer.before
            end = bisect_left(times, at + LENGTHS[-1])
            changed |= dict.fromkeys(customer.ids[place:end])
            times.insert(place, at)
            customer.ids.insert(place, number)
            customer.terminals.insert(place, terminal_id)
            customer.totals.insert(place, before)
            for later in range(place, len(times)):
                customer.totals[later] += cents
        if not terminal.times or terminal.times[-1] <= at:
            terminal.times.append(at)
            terminal.ids.append(number)
        else:
            place = bisect_right(terminal.times, at)
            terminal.times.insert(place, at)
            terminal.ids.insert(place, number)
            changed |= dict.fromkeys(terminal.ids[_reach(terminal, at)])
        self._of[number] = customer
        if number in self._pending:
            self._labels[number] = self._pending.pop(number)
            for known, until in _frauds(self._labels[number]):
                insort(terminal.frauds, (at, known, until))
        self.newest = max(self.newest, at)
        for _ in range(_SWEPT):
            self._forget_some()
        return self._correctable(changed) if changed else []

    def label(self, transaction_id: int, is_fraud: bool, known_at: int) -> list[Payment]:
        """Take in what a payment was found to be, from `known_at` on.

        Returns:
            The payments whose features changed: they are later than `known_at`, but came before.
        """
        version = known_at << 1 | is_fraud
        customer = self._of.get(transaction_id)
        place = 0 if customer is None else customer.ids.index(transaction_id)
        if customer is not None and customer.times[place] < self.newest - RETENTION:
            return []
        labels = self._labels if customer is not None else self._pending
        before = labels.get(transaction_id, ())
        after = _with(before, version)
        if after == before:
            return []
        labels[transaction_id] = after
        if customer is None:
            if len(self._pending) > _PENDING:
                del self._pending[next(iter(self._pending))]
                self.forgotten += 1
            return []
        were, are = _frauds(before), _frauds(after)
        if were == are:
            return []
        at, terminal = customer.times[place], self._terminals[customer.terminals[place]]
        for known, until in were:
            terminal.frauds.remove((at, known, until))
        for known, until in are:
            insort(terminal.frauds, (at, known, until))
        reach = _reach(terminal, at)
        changed = [
            number
            for number, then in zip(terminal.ids[reach], terminal.times[reach], strict=True)
            if _holds(were, then) != _holds(are, then)
        ]
        return self._correctable(dict.fromkeys(changed)) if changed else []

    def payment(self, transaction_id: int) -> Payment:
        """A payment that is in the state.

        Raises:
            KeyError: it is not.
        """
        customer = self._of[transaction_id]
        place = customer.ids.index(transaction_id)
        before = customer.totals[place - 1] if place else customer.before
        return Payment(
            transaction_id,
            customer.times[place],
            customer.number,
            customer.terminals[place],
            customer.totals[place] - before,
        )

    def features(self, transaction_id: int) -> Row:
        """The features of a payment that is in the state, as they are known by now.

        Raises:
            KeyError: it is not.
        """
        customer = self._of[transaction_id]
        times, totals = customer.times, customer.totals
        place = (
            len(times) - 1
            if customer.ids[-1] == transaction_id
            else customer.ids.index(transaction_id)
        )
        at, total = times[place], totals[place]
        cents = total - (totals[place - 1] if place else customer.before)
        first = place
        counts, averages = [], []
        for length in LENGTHS:
            first = bisect_right(times, at - length, 0, first)
            count = place + 1 - first
            counts.append(count)
            averages.append(
                (total - (totals[first - 1] if first else customer.before)) / count / 100
            )
        terminal = self._terminals[customer.terminals[place]]
        end = at - DELAY
        first = last = bisect_right(terminal.times, end)
        paid, shares = [], []
        for length in LENGTHS:
            first = bisect_right(terminal.times, end - length, 0, first)
            paid.append(last - first)
        shares = [0.0, 0.0, 0.0]
        if terminal.frauds and last > first:
            frauds = terminal.frauds
            reach = slice(
                bisect_left(frauds, (end - LENGTHS[-1] + 1,)), bisect_left(frauds, (end + 1,))
            )
            known = [then for then, since, until in frauds[reach] if since <= at < until]
            for number, (length, count) in enumerate(zip(LENGTHS, paid, strict=True)):
                if count:
                    shares[number] = (len(known) - bisect_right(known, end - length)) / count
        day, of_day = divmod(at, DAY)
        return (
            cents / 100,
            (day + 3) % 7 >= 5,
            of_day // 3_600_000_000 <= 6,
            *counts,
            *averages,
            *paid,
            *shares,
        )

    def rebuild(self, payments: pa.Table, labels: pa.Table) -> None:
        """Fill an empty state in bulk.

        Args:
            payments: columns transaction_id (one row each), at, customer_id, terminal_id, cents; int64.
            labels: transaction_id, is_fraud, known_at; every version in any order, and of two that were
                known at the same time the later one in the table counts.
        """
        import numpy as np

        names = ("transaction_id", "at", "customer_id", "terminal_id", "cents")
        number, at, customer_id, terminal_id, cents = (payments[n].to_numpy() for n in names)
        order = np.lexsort((number, at, customer_id))
        columns = [column[order] for column in (at, number, terminal_id)]
        totals = np.cumsum(cents[order])
        for start, stop in _groups(customer_id[order]):
            customer = _Customer(int(customer_id[order[start]]))
            own = totals[start:stop] - (totals[start - 1] if start else 0)
            parts = [column[start:stop] for column in columns]
            for target, values in zip(
                (customer.times, customer.ids, customer.terminals, customer.totals),
                (*parts, own),
                strict=True,
            ):
                target.frombytes(values.tobytes())
            self._customers[customer.number] = customer
            self._of.update(zip(customer.ids, repeat(customer)))
        order = np.lexsort((at, terminal_id))
        columns = [column[order] for column in (at, number)]
        for start, stop in _groups(terminal_id[order]):
            terminal = _Terminal(int(terminal_id[order[start]]))
            terminal.times.frombytes(columns[0][start:stop].tobytes())
            terminal.ids.frombytes(columns[1][start:stop].tobytes())
            self._terminals[terminal.number] = terminal
        self.newest = int(at.max()) if len(at) else 0
        self._rebuild_labels(labels)

    def _rebuild_labels(self, labels: pa.Table) -> None:
        import numpy as np

        number = labels["transaction_id"].to_numpy()
        versions = labels["known_at"].to_numpy() << 1 | labels["is_fraud"].to_numpy()
        order = np.argsort(number, kind="stable")
        number, versions = number[order], versions[order]
        alone = np.ones(len(number), bool)
        same = number[1:] == number[:-1]
        alone[1:][same] = alone[:-1][same] = False
        found: dict[int, int | tuple[int, ...]] = dict(
            zip(number[alone].tolist(), versions[alone].tolist(), strict=True)
        )
        for one, version in zip(number[~alone].tolist(), versions[~alone].tolist(), strict=True):
            found[one] = _with(found.get(one, ()), version)
        maybe = set(number[versions & 1 == 1].tolist())
        self._labels = {one: known for one, known in found.items() if one in self._of}
        self._pending = {one: known for one, known in found.items() if one not in self._of}
        for one in maybe & self._labels.keys():
            payment = self.payment(one)
            for known, until in _frauds(self._labels[one]):
                insort(self._terminals[payment.terminal_id].frauds, (payment.at, known, until))

    def _correctable(self, changed: dict[int, None]) -> list[Payment]:
        found = [self.payment(number) for number in changed]
        recent = [payment for payment in found if payment.at >= self.newest - LATENESS]
        self.uncorrected += len(found) - len(recent)
        return recent

    def _forget_some(self) -> None:
        """Let go of what is too old in one customer or terminal, the next in turn."""
        one = next(self._sweep, None)
        if one is None:
            self._sweep = iter([*self._customers.values(), *self._terminals.values()])
            return
        old = bisect_left(one.times, self.newest - RETENTION)
        if not old:
            return
        if isinstance(one, _Customer):
            for number in one.ids[:old]:
                del self._of[number]
                self._labels.pop(number, None)
            one.before = one.totals[old - 1]
            del one.times[:old], one.ids[:old], one.totals[:old], one.terminals[:old]
            if not one.times:
                del self._customers[one.number]
        else:
            del one.times[:old], one.ids[:old]
            del one.frauds[: bisect_left(one.frauds, (self.newest - RETENTION,))]
            if not one.times:
                del self._terminals[one.number]


def _reach(terminal: _Terminal, at: int) -> slice:
    """Where the terminal's payments stand in whose windows one at `at` is."""
    times = terminal.times
    return slice(bisect_left(times, at + DELAY), bisect_left(times, at + DELAY + LENGTHS[-1]))


def _with(versions: int | tuple[int, ...], version: int) -> int | tuple[int, ...]:
    """The versions of a label with one more, which takes the place of one known at the same time.

    A version is `known_at << 1 | is_fraud`.
    """
    if versions == ():
        return version
    before = versions if isinstance(versions, tuple) else (versions,)
    after = sorted([*(one for one in before if one >> 1 != version >> 1), version])
    return tuple(after) if len(after) > 1 else after[0]


def _frauds(versions: int | tuple[int, ...]) -> Spans:
    """From when until when a payment is known to be fraud."""
    if isinstance(versions, int):
        return [(versions >> 1, NEVER)] if versions & 1 else []
    return [
        (one >> 1, following >> 1)
        for one, following in pairwise((*versions, NEVER << 1))
        if one & 1
    ]


def _holds(spans: Spans, at: int) -> bool:
    return any(known <= at < until for known, until in spans)


def _groups(values: object) -> Iterator[tuple[int, int]]:
    """Where each run of equal values begins and ends."""
    import numpy as np

    array_ = np.asarray(values)
    edges = np.flatnonzero(array_[1:] != array_[:-1]) + 1
    bounds = [0, *edges.tolist(), len(array_)] if len(array_) else []
    return iter(pairwise(bounds))
