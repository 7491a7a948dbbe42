"""A small plant's house: a model, a simulated plant, a stream to put its readings in, and their scorer."""

from __future__ import annotations

from collections import deque
from datetime import UTC, date

import numpy as np

from orchestration.demo.plant import MODELS, World, simulate
from orchestration.learning.machine_health import Health
from orchestration.learning.warning_states import Policy
from orchestration.streaming.engine import run
from orchestration.streaming.events import microseconds
from orchestration.streaming.maintenance_scoring import TOPICS, MaintenanceScoring, stream_topic
from orchestration.streaming.sensor_plant import HOUR, Plant, Record, Reference, Spec
from orchestration.streaming.sensor_windows import FEATURES, HISTORY
from tests.unit.streaming.stream_house import Stream, text_of

WORLD = World(
    models=MODELS[2:], machines=4, first_date=date(2025, 1, 1), days=18, minutes=60, seed=3
)
POLICY = Policy(48, 125, 24, 60, 2, 6, 500.0, 1000.0, 16.0, 4.0)


class Linear:
    """A model with a weight for every feature, so that a score tells whether any of them differs."""

    version, warning_threshold = "linear", 0.6

    def __init__(self, sensors):
        self.inputs = (
            *((sensor, feature) for sensor in sorted(sensors) for feature in FEATURES),
            *(("", feature) for feature in HISTORY),
        )

    def score(self, matrix):
        known = np.nan_to_num(matrix.astype(np.float64))
        distances = [n for n, (_, f) in enumerate(self.inputs) if f == "deviation_distance_6h"]
        near = known @ np.linspace(0.1, 0.9, known.shape[1]) / 1e6
        chance = 1 - np.exp(-np.square(known[:, distances]).max(axis=1) / 6 - np.tanh(near) / 1e3)
        life = 125 * (1 - chance)
        return Health(np.clip(chance, 0, 1), life, life / 2, life)

    def reasons(self, matrix, most=3):
        return [["far from its baseline"] for _ in matrix]


class Known:
    """What is known of a plant, and news of it when a test gives some."""

    def __init__(self, plant, policy=POLICY):
        self.plant, self.policy, self.news = plant, policy, deque()


def known_of(simulated, references=True):
    """What a build would make of a simulated plant's database; the references are the design values."""

    def times(table, column, wanted=lambda row: True):
        found = {}
        for row in simulated.tables[table].to_pylist():
            if wanted(row):
                found.setdefault(row["machine_id"], []).append(microseconds(row[column]))
        return {machine: tuple(sorted(at)) for machine, at in found.items()}

    renewed = times("maintenance", "performed_at", lambda row: row["kind"] != "recalibration")
    others = (
        renewed,
        times("maintenance", "performed_at", lambda row: row["kind"] == "recalibration"),
        times("failures", "failed_at"),
        times("machine_errors", "occurred_at"),
    )
    machines = {
        row["machine_id"]: Record(
            row["machine_model"],
            (microseconds(row["commissioned_at"]), *renewed.get(row["machine_id"], ())),
            *(known.get(row["machine_id"], ()) for known in others),
        )
        for row in simulated.tables["machines"].to_pylist()
    }
    sensors = {}
    for row in simulated.tables["sensors"].to_pylist():
        step = round((row["setting_step"] or 0) * 1e6)
        sensors.setdefault(row["machine_model"], {})[row["sensor"]] = Spec(
            row["unit"], row["min_value"], row["max_value"], step
        )
    begin = min(record.starts[0] for record in machines.values()) // HOUR
    design = {
        (model.name, sensor.name, 500 + level): Reference(
            round(1e6 * (sensor.mean + sensor.per_load * (20 * level - 60))),
            1e6 * sensor.std,
            begin,
        )
        for model in WORLD.models
        for sensor in model.sensors
        for level in range(8)
    }
    return Plant(
        machines,
        sensors,
        {("degF", "degC"): (0.5555555555555556, -17.77777777777778)},
        design if references else {},
    )


def readings_of(simulated):
    """The readings as they arrive, (topic, event)."""
    rows = simulated.readings.select(["machine_id", "read_at", "sensor", "value", "unit"])
    return [
        ("readings", row | {"read_at": text_of(row["read_at"].replace(tzinfo=UTC))})
        for row in rows.to_pylist()
    ]


class Machines(Stream):
    """The readings of a plant, and what is said of its machines."""

    system, topics = "plant_stream", TOPICS
    landed = ("readings", "sensor_features", "machine_health", "warnings")

    def __init__(self, settings, plant):
        super().__init__(settings)
        self.plant = plant

    def use_case(self, model=None):
        return use_case(self.settings, self.plant, model)

    def said(self):
        """What was first said, without what differs from run to run: health, features and warnings by key."""
        keys = {
            "machine_health": ("machine_id", "as_of_at"),
            "sensor_features": ("machine_id", "as_of_at", "sensor"),
            "warnings": ("warning_id", "state"),
        }
        dull = ("scored_at", "latency_ms", "changed_at", "reading_position")
        found = {}
        for topic, names in keys.items():
            found[topic] = {}
            for one in self.read(topic):
                row = {name: value for name, value in one.items() if name not in dull}
                found[topic].setdefault(tuple(one[name] for name in names), row)
        return found


def use_case(settings, plant, model=None):
    def champion(kind):
        return model or Linear(plant.sensors[kind])

    models = {kind: champion(kind) for kind in plant.sensors}
    return MaintenanceScoring(settings, Known(plant), models.__getitem__)


if __name__ == "__main__":  # the process that is killed
    from orchestration.settings import load_settings
    from orchestration.streaming.publisher import open_publisher

    house = load_settings()
    with open_publisher(stream_topic(house, "readings")) as to:
        scorer = use_case(house, known_of(simulate(WORLD)))
        run(scorer, to, stop=lambda: False, say=lambda line: None)
