"""The fraud stream through a real Kafka broker, landing beside it: latency at 1,000/s, the most it takes, its rebuild.

chrt -r 10 .ci/servers.py --only kafka .venv/bin/python -m benchmarks.fraud_stream
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks.streams import landed, landing, quantiles
from orchestration.connectors.event_consumer import open_consumer
from orchestration.learning.fraud_detection import FEATURES, Model, fit
from orchestration.settings import Settings, load_settings
from orchestration.streaming import fraud_state
from orchestration.streaming.engine import run
from orchestration.streaming.events import at_time
from orchestration.streaming.fraud_scoring import TOPICS, FraudScoring, stream_topic
from orchestration.streaming.payment_windows import DAY, PaymentWindows
from orchestration.streaming.publisher import open_publisher
from orchestration.warehouse.connect import connect

REBUILT = 1_750_000
LANDED_DAYS = 40
PACED, WARM, RATE = 45_000, 15_000, 1_000
DRAINED, BURST = 60_000, 150_000
LANDED = ("payments", "fraud_reports", "scores")
BEGIN = 1_533_427_200_000_000  # 2018-08-05T00:00:00Z


def trained() -> Model:
    """A champion as learning fits it; it raises an alert for about one of the payments below in fifty."""
    draw, rows = np.random.default_rng(0), 20_000
    amount = draw.integers(100, 15_000, rows) / 100
    frame = pl.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "as_of_at": [datetime(2018, 7, 23) + timedelta(seconds=30 * i) for i in range(rows)],
            "customer_id": draw.integers(0, 5_000, rows),
            **{name: draw.integers(1, 300, rows) for name in FEATURES},
            "amount": amount,
            **{name: draw.random(rows) / 50 for name in FEATURES if "share" in name},
            "label": amount > 147,
        }
    )
    return fit(frame, "lightgbm", cards_per_day=57)


def payments(count: int, first: int, at: int, step: int) -> list[bytes]:
    """Payments as they come, `step` microseconds apart."""
    draw = np.random.default_rng(first)
    columns = zip(
        draw.integers(0, 5_000, count).tolist(),
        draw.integers(0, 10_000, count).tolist(),
        draw.integers(100, 15_000, count).tolist(),
        strict=True,
    )
    return [
        json.dumps(
            {
                "transaction_id": first + number,
                "transaction_at": at_time(at + number * step).isoformat(),
                "customer_id": customer,
                "terminal_id": terminal,
                "amount": cents / 100,
            }
        ).encode()
        for number, (customer, terminal, cents) in enumerate(columns)
    ]


def fill(settings: Settings) -> None:
    """A warehouse with 1.75 M landed payments and their labels in the days that the windows reach."""
    with connect(settings) as connection:
        connection.execute("create schema if not exists raw")
        connection.execute(
            f"""
            create table raw.payments_lake__payments as
            select i as transaction_id,
                make_timestamp({BEGIN - LANDED_DAYS * DAY} + i * {LANDED_DAYS * DAY // REBUILT}) as transaction_at,
                cast(hash(i) % 5000 as bigint) as customer_id,
                cast(hash(i + 1) % 10000 as bigint) as terminal_id,
                cast(hash(i + 2) % 15000 / 100 as decimal(12, 2)) as amount,
                hash(i + 3) % 125 = 0 as is_fraud,
                timestamp '2018-08-05' as _loaded_at
            from range({REBUILT}) as rows (i)
            """
        )


def rebuild_seconds(settings: Settings) -> float:
    """From the warehouse to a state that can score."""
    started = time.perf_counter()
    windows = PaymentWindows()
    with fraud_state.snapshot(settings) as landed:
        windows.rebuild(landed.payments(None), landed.labels())
    if len(windows) != REBUILT:
        raise RuntimeError(f"{len(windows):,} payments in the state instead of {REBUILT:,}")
    return time.perf_counter() - started


def scorer(data_dir: Path, url: str, stop: threading.Event) -> None:
    """The process that scores."""
    settings = load_settings(data_dir=data_dir, payments_stream_url=url)
    model = trained()
    with open_publisher(stream_topic(settings, "payments")) as publisher:
        publisher.meet(TOPICS)
        use_case = FraudScoring(settings, lambda: model)
        run(use_case, publisher, stop=stop.is_set, say=lambda line: print(line, flush=True))


def measure(url: str, data_dir: Path) -> list[tuple[str, str, str]]:
    """All figures: what, measured, to reach."""
    from confluent_kafka import Producer

    settings = load_settings(data_dir=data_dir, payments_stream_url=url)
    fill(settings)
    rows = [("1.75 M payments to a state, s", f"{rebuild_seconds(settings):.1f}", "15")]
    with open_publisher(stream_topic(settings, "payments")) as publisher:
        publisher.create(dict.fromkeys(TOPICS, 1))
    producer = Producer(
        {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "linger.ms": 0,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=scorer, args=(data_dir, url, stop))
    for value in payments(DRAINED, REBUILT, BEGIN, 1_000_000):
        producer.produce("payments", value)
        producer.poll(0)
    producer.flush(60)
    process.start()
    times: list[int] = []
    with open_consumer(stream_topic(settings, "scores")) as scores:
        scores.start({})
        while len(times) < DRAINED:
            times += [event.timestamp or 0 for event in scores.poll(5_000, 0.5)]
    rate = 0.8 * DRAINED / max(times[int(0.9 * DRAINED)] - times[int(0.1 * DRAINED)], 1) * 1000
    rows.append(("events/s scored from a backlog", f"{rate:,.0f}", ""))
    topics = [f"payments_stream.{topic}" for topic in LANDED]
    try:
        for phase, is_paced in ((burst, False), (paced, True)):
            lands = landing(settings, "WATERSHED_PAYMENTS_STREAM_URL", url, topics, paced=is_paced)
            try:
                rows += phase(settings, producer)
            finally:
                lands.terminate()
                lands.wait()
    finally:
        stop.set()
        process.join(30)
    return rows


def burst(settings: Settings, producer) -> list[tuple[str, str, str]]:
    """More than it can take at once: from the first until all are scored, and payments and scores have landed."""
    values = payments(BURST, REBUILT + DRAINED, BEGIN + (DRAINED + 60) * 1_000_000, 1_000_000)
    tables = ("payments_stream__payments", "payments_stream__scores")

    def wait(count: int) -> None:
        while any(landed(settings, table) < count for table in tables):
            time.sleep(0.2)

    wait(DRAINED)  # landing is awake before the clock starts
    began = time.time()
    for value in values:
        producer.produce("payments", value)
        producer.poll(0)
    producer.flush(60)
    wait(DRAINED + BURST)
    rate = BURST / (time.time() - began)
    return [("events/s scored and landed", f"{rate:,.0f}", "10,000")]


def paced(settings: Settings, producer) -> list[tuple[str, str, str]]:
    """At 1,000 events/s: from `produce` here to the alert's receipt here, and what of it is ours."""
    before = DRAINED + BURST
    first = REBUILT + before
    values = payments(PACED, first, BEGIN + (before + 120) * 1_000_000, 1_000_000)
    sent = np.zeros(PACED)
    alerts: dict[int, float] = {}
    done = threading.Event()
    source, said = stream_topic(settings, "alerts"), stream_topic(settings, "scores")
    begins = open_end(source), open_end(said)

    def hear() -> None:
        with open_consumer(source) as consumer:
            consumer.start({"0": begins[0]})
            while not done.is_set():
                for event in consumer.poll(500, 0.1):
                    alerts[json.loads(event.value)["transaction_id"] - first] = time.time()

    thread = threading.Thread(target=hear)
    thread.start()
    began = time.time()
    for number, value in enumerate(values):
        ahead = began + number / RATE - time.time()
        if ahead > 0:
            time.sleep(ahead)
        sent[number] = time.time()
        producer.produce("payments", value)
        producer.poll(0)
    producer.flush(30)
    inside: list[float] = []
    with open_consumer(said) as scores:
        scores.start({"0": begins[1]})
        while len(inside) < PACED:
            inside += [json.loads(event.value)["latency_ms"] for event in scores.poll(5_000, 1.0)]
    done.set()
    thread.join()
    whole = [1000 * (at - sent[number]) for number, at in alerts.items() if number >= WARM]
    return [
        (
            f"event sent to alert received at {RATE:,}/s, ms p50 / p99",
            quantiles(whole, 2),
            "p99 10",
        ),
        ("of it inside our code, ms p50 / p99", quantiles(inside[WARM:], 2), "p99 1"),
        ("alerts", f"{len(whole):,}", ""),
    ]


def open_end(source) -> int:
    """Where a topic of one partition ends."""
    with open_consumer(source) as consumer:
        consumer.start({})
        return consumer.watermarks()[0][1]


def main() -> None:
    """Run all; takes about two minutes on two cores."""
    table = Table("claim", "measured", "to reach")
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(os.environ["TEST_KAFKA_URL"], Path(folder)):
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
