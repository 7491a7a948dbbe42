"""How a stream goes: the live line, and the metrics that Prometheus reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError

if TYPE_CHECKING:
    from orchestration.streaming.engine import Scored

_BOUNDS = (0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Upper bounds of the latency histogram, in seconds."""


class Status:
    """Counts since the start, and those of the last second.

    Attributes:
        scored: events scored. `alerts`, `corrected`: those of `Scored`, summed.
        set_aside: reason to number.
        lag: events of the scored topic that wait; -1 when the broker does not say.
    """

    def __init__(self, use_case: str) -> None:
        self.use_case = use_case
        self.scored = self.alerts = self.corrected = self.lag = 0
        self.set_aside: Counter[str] = Counter()
        self._buckets, self._sum = [0] * (len(_BOUNDS) + 1), 0.0
        self._recent: list[tuple[float, int]] = []
        self._said, self._scored_then = time.monotonic(), 0

    def count(self, scored: Scored, seconds: float) -> None:
        """Count what became of some events, published so many seconds after they came."""
        self.alerts += scored.alerts
        self.corrected += scored.corrected
        self.set_aside += scored.set_aside
        if scored.scored:
            self.scored += scored.scored
            self._buckets[bisect_left(_BOUNDS, seconds)] += scored.scored
            self._sum += seconds * scored.scored
            self._recent.append((seconds, scored.scored))

    def is_due(self) -> bool:
        """Whether a second has passed since the last line."""
        return time.monotonic() - self._said >= 1

    def line(self, lag: int, trouble: str = "") -> str:
        """The live line; begins a new second."""
        self.lag, now = lag, time.monotonic()
        rate = (self.scored - self._scored_then) / (now - self._said)
        self._said, self._scored_then = now, self.scored
        middle, high = self.latency(0.5), self.latency(0.99)
        self._recent = []
        parts = [
            f"{rate:,.0f} events/s",
            f"latency p50 {1000 * middle:.2f} p99 {1000 * high:.2f} ms" if high else "waiting",
            f"alerts {self.alerts:,}",
            f"set aside {self.set_aside.total():,}",
            f"lag {lag:,}" if lag >= 0 else "lag unknown",
        ]
        if self.corrected:
            parts.insert(3, f"corrected {self.corrected:,}")
        if self.set_aside:
            parts.append(", ".join(f"{why} {n:,}" for why, n in self.set_aside.most_common(3)))
        if trouble and not rate:
            parts.append(trouble)
        return f"{self.use_case}: {' | '.join(parts)}"

    def latency(self, share: float) -> float:
        """The quantile of the last second's latencies, in seconds; 0 if nothing was scored."""
        ordered = sorted(self._recent)
        if not ordered:
            return 0.0
        counts = list(accumulate(number for _, number in ordered))
        return ordered[bisect_left(counts, share * counts[-1])][0]

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus_client collects them."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        name, label = "watershed_stream", ["use_case"]
        for what, told, value in (
            ("events", "Events scored", self.scored),
            ("alerts", "Alerts published", self.alerts),
            ("corrected", "Events whose features a late one changed", self.corrected),
        ):
            counter = CounterMetricFamily(f"{name}_{what}", told, labels=label)
            counter.add_metric([self.use_case], value)
            yield counter
        aside = CounterMetricFamily(
            f"{name}_set_aside", "Events left out", labels=[*label, "reason"]
        )
        for reason, number in list(self.set_aside.items()):
            aside.add_metric([self.use_case, reason], number)
        yield aside
        lag = GaugeMetricFamily(f"{name}_lag", "Events that wait; -1 unknown", labels=label)
        lag.add_metric([self.use_case], self.lag)
        yield lag
        seconds = HistogramMetricFamily(
            f"{name}_latency_seconds",
            "From an event's receipt to its score's publication",
            labels=label,
        )
        bounds = [*map(str, _BOUNDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._buckets), strict=True))
        seconds.add_metric([self.use_case], buckets, self._sum)
        yield seconds

    @contextmanager
    def served(self, port: int) -> Iterator[None]:
        """Serve the metrics on a port of 127.0.0.1 for as long as the block runs.

        Raises:
            MendableError: the port is taken.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)  # type: ignore[arg-type]
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise MendableError(
                "setting WATERSHED_STREAM_METRICS_PORT",
                expected="a free port of 127.0.0.1, or 0 for no metrics",
                arrived=f"{port}: {error.strerror}",
                mend="set another port in .env, or stop what listens there",
            ) from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
