"""The fraud stream against Quix Streams, through the same Kafka broker, in turn: payments scored from a backlog.

    python -m venv .venv-quix && .venv-quix/bin/pip install quixstreams==3.28.1
    .ci/servers.py --only kafka .venv/bin/python -m benchmarks.fraud_quix .venv-quix/bin/python

Ours computes all features of a payment, asks the model and publishes score, features and reasons. The peer is given
less to do: the customer's six features, from a list in its state, by payments that come keyed by customer; it publishes
these. It needs an environment of its own, since it asks for another client of Kafka.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

COUNT = 60_000
DAYS = (1, 7, 30)
STEP = 50_000_000
"""Microseconds between payments: 35 days of them."""


def peer(servers: str, topic: str, out: str, state: str) -> None:
    """Quix Streams' application; it runs until it is ended."""
    from quixstreams import Application

    def features(payment: dict, state) -> dict:
        at = datetime.fromisoformat(payment["transaction_at"]).timestamp()
        past = [one for one in state.get("past", []) if one[0] > at - DAYS[-1] * 86_400]
        past.append([at, payment["amount"]])
        state.set("past", past)
        told = {"transaction_id": payment["transaction_id"]}
        for days in DAYS:
            amounts = [amount for when, amount in past if when > at - days * 86_400]
            told[f"count_{days}d"] = len(amounts)
            told[f"amount_avg_{days}d"] = sum(amounts) / len(amounts)
        return told

    app = Application(
        broker_address=servers, consumer_group=f"{topic}-peer", auto_offset_reset="earliest",
        state_dir=state, loglevel="ERROR",
    )  # fmt: skip
    payments = app.dataframe(app.topic(topic, value_deserializer="json"))
    payments.apply(features, stateful=True).to_topic(app.topic(out, value_serializer="json"))
    app.run()


def ours(settings, stop: threading.Event) -> None:
    """The scorer, with a model like the champion."""
    from benchmarks.fraud_stream import trained
    from orchestration.streaming.engine import run
    from orchestration.streaming.fraud_scoring import FraudScoring, stream_topic
    from orchestration.streaming.publisher import open_publisher

    model = trained()
    with open_publisher(stream_topic(settings, "payments")) as publisher:
        run(FraudScoring(settings, lambda: model), publisher, stop=stop.is_set, say=lambda _: None)


def rate(source, of: str, process: subprocess.Popen[bytes]) -> float:
    """Events per second that came from a topic, as received here, without the first and the last tenth.

    Not by the events' own timestamps: the peer passes on those of the payments.
    """
    from dataclasses import replace

    from orchestration.connectors.event_consumer import open_consumer

    times: list[float] = []
    with open_consumer(replace(source, topic=of)) as consumer:
        consumer.start({})
        while len(times) < COUNT:
            if process.poll() is not None:
                raise RuntimeError(f"what publishes to {of} ended with {process.returncode}")
            events = consumer.poll(5_000, 0.05)
            times += [time.perf_counter()] * len(events)
    low, high = times[int(0.1 * COUNT)], times[int(0.9 * COUNT)]
    return 0.8 * COUNT / (high - low)


@contextmanager
def running(command: list[str]):
    """A process, to the end of the block."""
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def measure(url: str, folder: Path, python: str) -> list[tuple[str, str]]:
    """What, measured."""
    from confluent_kafka import Producer

    from benchmarks.fraud_stream import BEGIN, payments
    from orchestration.settings import load_settings
    from orchestration.streaming.fraud_scoring import TOPICS, stream_topic
    from orchestration.streaming.publisher import open_publisher
    from orchestration.warehouse.connect import connect

    settings = load_settings(data_dir=folder, payments_stream_url=url)
    connect(settings).close()
    source, servers = stream_topic(settings, "payments"), url.removeprefix("kafka://")
    with open_publisher(source) as publisher:
        publisher.create({**dict.fromkeys(TOPICS, 1), "quix-out": 1})
    producer = Producer({"bootstrap.servers": servers, "queue.buffering.max.messages": 1_000_000})
    for value in payments(COUNT, 0, BEGIN, STEP):
        producer.produce("payments", value, str(json.loads(value)["customer_id"]))
    producer.flush(60)

    me = [sys.executable, "-m", __spec__.name, "--ours", str(folder), url]
    with running(me) as process:
        mine = rate(source, "scores", process)
    them = [python, __file__, "--peer", servers, "payments", "quix-out", str(folder / "state")]
    with running(them) as process:
        theirs = rate(source, "quix-out", process)
    return [
        ("events/s: all features, score, reasons (ours)", f"{mine:,.0f}"),
        ("events/s: the customer's features only (Quix Streams)", f"{theirs:,.0f}"),
        ("ratio", f"{mine / theirs:.1f}"),
    ]


def main(arguments: list[str]) -> None:
    """Run it; takes about two minutes on two cores."""
    if arguments[0] == "--peer":
        peer(*arguments[1:])
    elif arguments[0] == "--ours":
        from orchestration.settings import load_settings

        settings = load_settings(data_dir=Path(arguments[1]), payments_stream_url=arguments[2])
        ours(settings, threading.Event())
    else:
        import os

        from rich.console import Console
        from rich.table import Table

        table = Table("claim", "measured")
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(os.environ["TEST_KAFKA_URL"], Path(folder), arguments[0]):
                table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
