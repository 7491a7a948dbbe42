"""Sensor readings through a real Kafka broker at 20,000/s, landed and scored: latency, the most it takes, its restart.

sudo sysctl kernel.sched_rr_timeslice_ms=5 kernel.sched_rt_runtime_us=-1
chrt -r 10 .ci/servers.py --only kafka .venv/bin/python -m benchmarks.maintenance_stream

Sender, broker, scorer and receiver share the processors with landing, which makes way for them. What
`chrt` runs takes turns of 100 ms by default, and all of it stands still for 50 ms of a second that it
fills; then it is these pauses that are measured.

Four hundred machines of four sensors read once a minute; a minute passes in 80 ms, so that hours close
while one looks: in the first of its minutes all machines' hours do. That is the worst that a plant can
ask for, and what the latencies of scores are taken from.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.streams import landed, landing, quantiles
from orchestration.connectors.event_consumer import open_consumer
from orchestration.learning.machine_health import MACHINE_FEATURES, SENSOR_FEATURES, Model
from orchestration.learning.warning_states import Policy
from orchestration.settings import Settings, load_settings
from orchestration.streaming import maintenance_state
from orchestration.streaming.engine import run
from orchestration.streaming.events import at_time
from orchestration.streaming.maintenance_scoring import TOPICS, MaintenanceScoring, stream_topic
from orchestration.streaming.publisher import open_publisher
from orchestration.streaming.sensor_plant import HOUR, HourSums, Plant, Record, Reference, Spec
from orchestration.streaming.sensor_windows import SensorWindows
from orchestration.warehouse.connect import connect

MACHINES, SENSORS = 400, 4
RATE, SECONDS, WARM = 20_000, 30, 14
DRAINED, REBUILT = 200_000, 10_000_000
FAULTY_FROM = 300
"""The minute from which every fiftieth machine reads too much."""
MINUTE = HOUR // 60
BEGIN = 1_735_689_600_000_000  # 2025-01-01T00:00:00Z
NAMES = tuple(f"sensor_{n}" for n in range(SENSORS))
LANDED = ("readings", "sensor_features", "machine_health", "warnings")


@dataclass
class Known:
    """A plant of one model, its references known from the beginning."""

    plant: Plant = field(
        default_factory=lambda: Plant(
            {f"machine-{n:04d}": Record("machine", (BEGIN,)) for n in range(MACHINES)},
            {"machine": {name: Spec("degC", -50.0, 500.0) for name in NAMES}},
            {},
            {("machine", name, 0): Reference(50_000_000, 1_000_000.0, 0) for name in NAMES},
        )
    )
    policy: Policy | None = field(
        default_factory=lambda: Policy(48, 125, 24, 60, 2, 6, 500.0, 1000.0, 16.0, 4.0)
    )
    news: deque[tuple[Plant, list[HourSums]]] = field(default_factory=deque)


def model() -> Model:
    """Learning's model with as many trees as it fits, which warns of about one machine in fifty."""
    import lightgbm

    inputs = tuple((name, feature) for name in NAMES for feature in SENSOR_FEATURES)
    inputs += tuple(("", feature) for feature in MACHINE_FEATURES)
    draw = np.random.default_rng(0)
    matrix = draw.normal(0, 1, (20_000, len(inputs)))
    wear = matrix[:, :8].sum(axis=1)
    options = {"num_threads": 1, "verbose": -1, "seed": 0, "num_leaves": 15}
    trees = {
        kind: lightgbm.train(
            {**options, "objective": objective}, lightgbm.Dataset(matrix, target), rounds
        ).model_to_string()
        for kind, objective, target, rounds in (
            ("classifier", "binary", (wear > 6).astype(float), 150),
            ("regressor", "regression", 60 - 10 * wear, 200),
        )
    }
    parameters = {
        "classifier": {"trees": trees["classifier"]},
        "regressor": {"trees": trees["regressor"], "start": 0.0},
        "calibration": {"score": [0.0, 1.0], "probability": [0.0, 1.0]},
        "interval": {"remaining": [0.0], "low": [-5.0], "high": [5.0]},
    }
    return Model(datetime(2025, 1, 1), "machine", "lightgbm", 0.5, 125.0, inputs, parameters)


def readings(count: int, first: int) -> list[tuple[bytes, bytes]]:
    """Keys and values in the order in which they come, from number `first` on."""
    numbers = np.arange(first, first + count)
    per_minute = MACHINES * SENSORS
    minute, place = np.divmod(numbers, per_minute)
    at = BEGIN + minute * MINUTE + place // SENSORS * (MINUTE // MACHINES)
    values = np.random.default_rng(first).normal(50, 1, count)
    values[(minute >= FAULTY_FROM) & (place // SENSORS % 50 == 0)] += 8
    machines, sensors = (part.tolist() for part in np.divmod(place, SENSORS))
    columns = zip(machines, sensors, at.tolist(), values.tolist(), strict=True)
    return [
        (
            b"machine-%04d" % machine,
            b'{"machine_id":"machine-%04d","read_at":"%b","sensor":"%b","value":%.3f,"unit":"degC"}'
            % (machine, at_time(when).isoformat().encode(), NAMES[sensor].encode(), value),
        )
        for machine, sensor, when, value in columns
    ]


def restart_seconds(settings: Settings) -> float:
    """From a warehouse with `REBUILT` landed readings to a state that can score."""
    with connect(settings) as connection:
        connection.execute("create schema raw")
        connection.execute(
            f"""
            create table raw.plant_stream__readings as
            select printf('machine-%04d', i // {SENSORS} % {MACHINES}) as machine_id,
                make_timestamp({BEGIN} + i // {SENSORS * MACHINES} * {MINUTE}) as read_at,
                'sensor_' || i % {SENSORS} as sensor,
                50 + hash(i) % 1000 / 1000 as value,
                'degC' as unit,
                timestamp '2025-01-10' + to_seconds(i // 60000) as _loaded_at,
                'readings/0/' || i as _source_position
            from range({REBUILT}) as rows (i)
            """
        )
    started, plant = time.perf_counter(), Known().plant
    with maintenance_state.snapshot(settings) as landed:
        landed.last_day()
        windows = SensorWindows(plant)
        windows.rebuild(landed.readings(None, plant))
    if windows.newest < BEGIN + (REBUILT // (SENSORS * MACHINES) - 1) * MINUTE:
        raise RuntimeError("the state does not reach to the last landed reading")
    return time.perf_counter() - started


class Timed(MaintenanceScoring):
    """Knows how long after it was sent each reading was taken in, and all that it changes was made."""

    def __init__(self, *known) -> None:
        super().__init__(*known)
        self.taken_in: list[float] = []
        self.warned = 0

    def update(self, events, received):
        """As it is, with the time that it took."""
        scored = super().update(events, received)
        self.warned += scored.alerts
        now = 1000 * time.time()
        if events[0].topic == "readings":
            self.taken_in += [
                now - event.timestamp for event in events if event.offset >= DRAINED + WARM * RATE
            ]
        return scored


def scorer(data_dir: Path, url: str, stop: threading.Event) -> None:
    """The process that scores."""
    import resource

    settings = load_settings(data_dir=data_dir, plant_stream_url=url)
    trained = model()
    with open_publisher(stream_topic(settings, "readings")) as publisher:
        publisher.meet(TOPICS)
        use_case = Timed(settings, Known(), lambda kind: trained)
        run(use_case, publisher, stop=stop.is_set, say=lambda line: print(line, flush=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"peak_mb": peak, "taken_in_ms": use_case.taken_in, "warnings": use_case.warned}
    (data_dir / "scorer.json").write_text(json.dumps(told))


class Heard:
    """What is said of machines, as it is received: when, by its place in the readings, and how long it took inside.

    In a process of its own, which waits for no turn in this one's interpreter. Both are known after `close`.
    """

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.received: dict[int, float] = {}
        self.inside: dict[int, float] = {}
        self.begun, self.ended = (context.Value("d", 0.0) for _ in range(2))
        self.count = context.Value("q", 0)
        self._done, (self._told, telling) = context.Event(), context.Pipe(duplex=False)
        known = (settings.data_dir, settings.value_of("plant_stream_url"), telling, self._done)
        self._process = context.Process(
            target=hear, args=(*known, self.count, self.begun, self.ended), daemon=True
        )
        self._process.start()

    def close(self) -> None:
        """Stop."""
        self._done.set()
        self.received, self.inside = self._told.recv()
        self._process.join()


def hear(data_dir: Path, url: str, telling, done, count, begun, ended) -> None:
    """The process that receives."""
    received: dict[int, float] = {}
    inside: dict[int, float] = {}
    source = stream_topic(load_settings(data_dir=data_dir, plant_stream_url=url), "machine_health")
    with open_consumer(source) as consumer:
        consumer.start({})
        while not done.is_set():
            for event in consumer.poll(500, 0.1):
                now, health = time.time(), json.loads(event.value or b"")
                place = int(health["reading_position"].rpartition("/")[2])
                if place not in received:
                    received[place], inside[place] = now, health["latency_ms"]
                    begun.value = begun.value or now
                    count.value, ended.value = len(received), now
    telling.send((received, inside))


def measure(url: str, data_dir: Path) -> list[tuple[str, str, str]]:
    """All figures: what, measured, to reach."""
    from confluent_kafka import Producer

    settings = load_settings(data_dir=data_dir, plant_stream_url=url)
    connect(settings).close()
    with open_publisher(stream_topic(settings, "readings")) as publisher:
        publisher.create(dict.fromkeys(TOPICS, 1))
    producer = Producer(
        {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "linger.ms": 2,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for key, value in readings(DRAINED, 0):
        producer.produce("readings", value, key)
        producer.poll(0)
    producer.flush(60)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=scorer, args=(data_dir, url, stop))
    process.start()
    heard, lands = Heard(settings), None
    try:
        hours = DRAINED // (60 * MACHINES * SENSORS)
        deadline = time.time() + 120
        while heard.count.value < hours * MACHINES and time.time() < deadline:
            time.sleep(0.1)
        per_hour = 60 * MACHINES * SENSORS
        rate = (hours - 1) * per_hour / (heard.ended.value - heard.begun.value)
        rows = [("readings/s scored from a backlog", f"{rate:,.0f}", "")]
        topics = [f"plant_stream.{topic}" for topic in LANDED]
        lands = landing(settings, "WATERSHED_PLANT_STREAM_URL", url, topics, paced=True)
        rows += paced(settings, producer, heard)
    finally:
        stop.set()
        process.join(30)
        if lands is not None:
            lands.terminate()
            lands.wait()
    told = json.loads((data_dir / "scorer.json").read_text())
    taken_in = quantiles(told["taken_in_ms"])
    rows.insert(2, ("reading sent to taken in, ms p50 / p99", taken_in, "p99 50"))
    rows.append(("warnings opened", f"{told['warnings']:,}", ""))
    rows.append(("most memory of the scorer, MB", f"{told['peak_mb']:,.0f}", ""))
    settings = load_settings(data_dir=data_dir / "landed", plant_stream_url=url)
    rows.append(("10 M readings to a state, s", f"{restart_seconds(settings):.1f}", "15"))
    return rows


def paced(settings: Settings, producer, heard: Heard) -> list[tuple[str, str, str]]:
    """At 20,000 readings/s with landing beside: from `produce` here to the score's receipt here."""
    count = RATE * (SECONDS + WARM)
    messages = readings(count, DRAINED)
    while (
        landed(settings, "plant_stream__readings") < DRAINED
    ):  # landing has caught up before the clock starts
        time.sleep(0.5)
    sent = np.zeros(count)
    began = time.time()
    for number, (key, value) in enumerate(messages):
        if number % 20 == 0:
            ahead = began + number / RATE - time.time()
            if ahead > 0:
                time.sleep(ahead)
        sent[number] = time.time()
        producer.produce("readings", value, key)
        producer.poll(0)
    took = time.time() - began
    producer.flush(30)
    behind = landed(settings, "plant_stream__readings")
    while landed(settings, "plant_stream__readings") < DRAINED + count:
        time.sleep(0.2)
    waited = time.time() - began - took
    time.sleep(1)
    heard.close()
    warm = DRAINED + WARM * RATE
    places = [place for place in heard.received if place >= warm]
    whole = [1000 * (heard.received[place] - sent[place - DRAINED]) for place in places]
    inside = [heard.inside[place] for place in places]

    return [
        (f"readings/s sent, for {WARM + SECONDS} s", f"{count / took:,.0f}", f"{RATE:,}"),
        (
            "reading that ends an hour sent to score received, ms p50 / p99",
            quantiles(whole),
            "p99 50",
        ),
        ("of it inside our code, ms p50 / p99", quantiles(inside), ""),
        ("scores", f"{len(places):,}", ""),
        ("landed when the last was sent", f"{behind / (DRAINED + count):.1%}", ""),
        ("all landed after, s", f"{waited:.1f}", ""),
    ]


def main() -> None:
    """Run all; takes about two minutes on two cores."""
    table = Table("claim", "measured", "to reach")
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(os.environ["TEST_KAFKA_URL"], Path(folder)):
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
