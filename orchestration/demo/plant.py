"""The stand-in for a plant: simulates machines that wear out, with sensors in a stream and their upkeep in a database.

A machine lives in episodes. In each, every component gets a Weibull life; the first to end is the
failure, unless preventive maintenance comes before it. Wear shows late and grows: nothing until 60 %
of a component's life, then the square of how far it is from there to the end, in the sensors that
the component moves. A twentieth of the failures gives no sign. The rest is what plants have: every
machine is a little different, the temperature follows the day, load changes what is normal, a
recalibration shifts a sensor, sensors fall silent or stick, and some readings come twice, late, in
another unit or cannot be true.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from orchestration.connectors.event_log import watermarks
from orchestration.demo.events import fill_topic
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

HOUR = 3_600
SHAPE, LIFE_HOURS = 3.5, 420.0
"""Of a component's Weibull life."""
SUDDEN_HOURS = 4_000.0
"""Mean life of what gives no sign before it fails."""
PREVENTED = 0.5
"""The share of episodes for which preventive maintenance is planned."""
_TABLES = {
    "machines": "machine_id text primary key, machine_model text not null, commissioned_at timestamp not null",
    "sensors": "machine_model text not null, sensor text not null, unit text not null,"
    " min_value double precision, max_value double precision, is_setting boolean not null,"
    " setting_step double precision, primary key (machine_model, sensor)",
    "maintenance": "maintenance_id integer primary key, machine_id text not null,"
    " performed_at timestamp not null, kind text not null, component text",
    "failures": "failure_id integer primary key, machine_id text not null,"
    " failed_at timestamp not null, component text not null",
    "machine_errors": "error_id integer primary key, machine_id text not null,"
    " occurred_at timestamp not null, code text not null",
}
"""The tables of a plant's database, in SQL that SQLite and PostgreSQL share."""


class Sensor(NamedTuple):
    """A sensor of a model: what it reads on a healthy machine, and what it can read at all."""

    name: str
    unit: str
    mean: float
    std: float
    low: float
    high: float
    per_load: float = 0.0
    """What a percent of load above 60 adds."""


class Model(NamedTuple):
    """A model of machine; `components` is what each one's wear adds at its end, in standard deviations."""

    name: str
    sensors: tuple[Sensor, ...]
    components: dict[str, dict[str, float]]
    has_load: bool = False


MODELS = (
    Model(
        "pump",
        (
            Sensor("temperature_c", "degC", 62.0, 1.2, -40, 250),
            Sensor("vibration_mm_s", "mm/s", 3.2, 0.25, 0, 100),
            Sensor("pressure_bar", "bar", 8.5, 0.12, 0, 60),
            Sensor("flow_l_min", "l/min", 240.0, 4.0, 0, 2_000),
        ),
        {
            "bearing": {"vibration_mm_s": 7, "temperature_c": 4},
            "seal": {"pressure_bar": -7, "flow_l_min": -4},
            "impeller": {"flow_l_min": -7, "vibration_mm_s": 4},
        },
    ),
    Model(
        "press",
        (
            Sensor("temperature_c", "degC", 48.0, 1.0, -40, 250),
            Sensor("vibration_mm_s", "mm/s", 5.5, 0.4, 0, 100),
            Sensor("pressure_bar", "bar", 180.0, 1.5, 0, 400),
            Sensor("cycle_time_s", "s", 12.0, 0.2, 0, 600),
        ),
        {
            "valve": {"pressure_bar": -6, "cycle_time_s": 5},
            "hydraulic_pump": {"temperature_c": 6, "pressure_bar": -4},
            "guide": {"vibration_mm_s": 7, "cycle_time_s": 3},
        },
    ),
    Model(
        "mixer",
        (
            Sensor("temperature_c", "degC", 55.0, 1.0, -40, 250, 0.20),
            Sensor("vibration_mm_s", "mm/s", 4.0, 0.3, 0, 100, 0.03),
            Sensor("pressure_bar", "bar", 2.4, 0.06, 0, 20, 0.004),
            Sensor("current_a", "A", 32.0, 0.6, 0, 400, 0.30),
        ),
        {
            "bearing": {"vibration_mm_s": 7, "temperature_c": 4},
            "gearbox": {"current_a": 6, "vibration_mm_s": 5},
            "shaft_seal": {"pressure_bar": -7, "temperature_c": 3},
        },
        has_load=True,
    ),
)


@dataclass(frozen=True)
class World:
    """What is simulated; another seed is another plant.

    Attributes:
        models: the models of machine.
        machines: how many of each model.
        first_date: the day on which all are commissioned.
        days: how many days.
        minutes: between two readings of a sensor; a divisor of 60.
        seed: of every random number.
    """

    models: tuple[Model, ...] = field(default=MODELS)
    machines: int = 8
    first_date: date = date(2025, 1, 1)
    days: int = 120
    minutes: int = 30
    seed: int = 2025


class Plant(NamedTuple):
    """A simulated plant.

    Attributes:
        tables: name to table, those of the database; times are timestamp[us], naive UTC.
        readings: machine_id, read_at, sensor, value, unit, arrived_at, in the order of arrival.
    """

    tables: dict[str, pa.Table]
    readings: pa.Table


def simulate(world: World) -> Plant:
    """What happens in a world; two calls give the same."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(world.seed)
    machines, upkeep, failures, errors, parts = [], [], [], [], []
    for model in world.models:
        for number in range(1, world.machines + 1):
            machine = f"{model.name}-{number:02d}"
            machines.append((machine, model.name, 0.0))
            life = _Life(random, model, world.days * 24.0)
            upkeep += [(machine, *work) for work in life.upkeep]
            failures += [(machine, *failure) for failure in life.failures]
            errors += [(machine, *error) for error in life.errors()]
            parts += [(machine, *part) for part in life.readings(world)]
    sensors = [
        (model.name, s.name, s.unit, float(s.low), float(s.high), False, None)
        for model in world.models
        for s in model.sensors
    ] + [(m.name, "load_pct", "%", 0.0, 150.0, True, 20.0) for m in world.models if m.has_load]
    since = np.datetime64(world.first_date, "us")
    tables = {
        "machines": _table(machines, "machine_id machine_model commissioned_at", since),
        "sensors": pa.table(
            list(map(pa.array, zip(*sensors, strict=True))),
            [
                "machine_model",
                "sensor",
                "unit",
                "min_value",
                "max_value",
                "is_setting",
                "setting_step",
            ],
        ),
        "maintenance": _numbered(
            upkeep, "maintenance_id machine_id performed_at kind component", since
        ),
        "failures": _numbered(failures, "failure_id machine_id failed_at component", since),
        "machine_errors": _numbered(errors, "error_id machine_id occurred_at code", since),
    }
    return Plant(tables, _arrivals(random, parts, since))


_Work = tuple[float, str, str | None]
"""When (hours), what kind, and on which component."""


class _Life:
    """One machine's life: its episodes, hours since the world's start, and how worn what is when."""

    def __init__(self, random: np.random.Generator, model: Model, hours: float) -> None:
        self.random, self.model, self.hours = random, model, hours
        self.episodes: list[tuple[float, float, list[float]]] = []
        """Start and end of each, and the lives of its components."""
        self.upkeep: list[_Work] = []
        self.failures: list[tuple[float, str]] = []
        start = 0.0
        while start < hours:
            lives = (LIFE_HOURS * random.weibull(SHAPE, len(model.components))).clip(48)
            sudden = max(24.0, random.exponential(SUDDEN_HOURS))
            planned = random.uniform(0.3, 1.0) * LIFE_HOURS
            fails, first = min(sudden, float(lives.min())), int(lives.argmin())
            if random.random() >= PREVENTED or planned >= fails:
                end = start + fails
                component = "electronics" if sudden < lives.min() else [*model.components][first]
                work: _Work = (end + random.uniform(6, 16), "repair", component)
                if end < hours:
                    self.failures.append((end, component))
            else:
                end = start + planned
                work = (end + random.uniform(2, 5), "preventive", None)
            self.episodes.append((start, end, lives.tolist()))
            start = work[0]
            if start < hours:
                self.upkeep.append(work)
        self.shifts = [
            (at, model.sensors[random.integers(len(model.sensors))].name, random.normal(0, 3))
            for at in random.uniform(0, hours, random.poisson(hours / 720))
            if self.state([at])[0][0]
        ]
        self.upkeep += [(at, "recalibration", name) for at, name, _ in self.shifts]
        self.upkeep.sort()

    def state(self, moments: Sequence[float] | Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Whether it runs at each moment, and the wear (0 to 1) of each component then."""
        import numpy as np

        at = np.asarray(moments)
        runs = np.zeros(len(at), bool)
        wear = np.zeros((len(at), len(self.model.components)))
        for start, end, lives in self.episodes:
            here = (at >= start) & (at < end)
            runs |= here
            age = (at[here, None] - start) / np.asarray(lives)
            wear[here] = ((age - 0.6).clip(0) / 0.4) ** 2
        return runs, wear

    def errors(self) -> Iterator[tuple[float, str]]:
        """Error codes: seldom, and more often the more is worn."""
        moments = self.random.uniform(0, self.hours, self.random.poisson(0.1 * self.hours))
        runs, wear = self.state(moments)
        chance = runs * (0.02 + 0.4 * wear.max(axis=1))
        for at, likely in sorted(zip(moments.tolist(), chance.tolist(), strict=True)):
            if self.random.random() < likely:
                yield at, f"E{self.random.integers(10, 14)}"

    def readings(self, world: World) -> Iterator[tuple[str, Floats, Floats, str]]:
        """Per sensor: name, when it reads (hours), the values, and the unit."""
        import numpy as np

        random = self.random
        step = world.minutes / 60
        at = np.arange(0, self.hours, step) + random.integers(0, world.minutes * 60) / HOUR
        at = at[at < self.hours]
        runs, wear = self.state(at)
        load = 20.0 * random.integers(2, 5, int(self.hours // 8) + 1)[(at // 8).astype(int)]
        for sensor in self.model.sensors:
            effects = [moves.get(sensor.name, 0.0) for moves in self.model.components.values()]
            strength = random.lognormal(0, 0.2)
            deviations = random.normal(0, 1.5) + random.normal(0, 1, len(at))
            deviations += strength * (wear @ np.array(effects))
            if sensor.name == "temperature_c":
                deviations += np.sin(2 * np.pi * (at % 24 - 9) / 24)
            for since, name, shift in self.shifts:
                if name == sensor.name:
                    deviations[at >= since] += shift
            values = sensor.mean + sensor.std * deviations
            if self.model.has_load:
                values += sensor.per_load * (load - 60)
            values = values.clip(sensor.low, sensor.high).round(3)
            heard = runs.copy()
            for since in random.uniform(0, self.hours, random.poisson(self.hours / 480)):
                heard &= (at < since) | (at > since + random.uniform(2, 24))
            if random.random() < self.hours / 2_880:  # once a season it sticks for a day
                since = random.integers(len(at))
                values[since : since + int(24 / step)] = values[since]
            yield sensor.name, at[heard], values[heard], sensor.unit
        if self.model.has_load:
            noise = random.normal(0, 0.8, len(at))
            yield "load_pct", at[runs], (load + noise)[runs].round(3), "%"


def _arrivals(
    random: np.random.Generator,
    parts: list[tuple[Any, ...]],
    since: np.datetime64,
) -> pa.Table:
    """The readings (machine, sensor, hours, values, unit) as they arrive, and what goes wrong on the way."""
    import numpy as np
    import pyarrow as pa

    sizes = [len(part[2]) for part in parts]
    words = [sorted({str(part[place]) for part in parts} | {"degF"}) for place in (0, 1, 4)]
    codes = [
        np.repeat(np.array([known.index(part[place]) for part in parts], np.int32), sizes)
        for known, place in zip(words, (0, 1, 4), strict=True)
    ]
    seconds = np.concatenate([np.rint(part[2] * HOUR).astype(np.int64) for part in parts])
    value = np.concatenate([part[3] for part in parts])
    arrives = seconds + 1
    late = random.random(len(value)) < 0.002
    arrives[late] += random.integers(HOUR, 5 * HOUR, late.sum())
    impossible = random.random(len(value)) < 0.0005
    value[impossible] = random.choice([-999.0, 9_999.0], impossible.sum())
    unit, celsius, fahrenheit = codes[2], words[2].index("degC"), words[2].index("degF")
    other = (unit == celsius) & (random.random(len(value)) < 0.001) & ~impossible
    value[other] = (value[other] * 1.8 + 32).round(3)
    unit[other] = fahrenheit
    twice = np.flatnonzero(random.random(len(value)) < 0.001)
    which = np.concatenate([np.arange(len(value)), twice])
    arrives = np.concatenate([arrives, arrives[twice] + 60])
    order = np.lexsort((which, arrives))
    which, arrives = which[order], arrives[order]
    machine, sensor, unit_names = (
        pa.DictionaryArray.from_arrays(code[which], pa.array(known))
        for code, known in zip(codes, words, strict=True)
    )
    second = np.timedelta64(1_000_000, "us")
    return pa.table(
        {
            "machine_id": machine,
            "read_at": since + seconds[which] * second,
            "sensor": sensor,
            "value": value[which],
            "unit": unit_names,
            "arrived_at": since + arrives * second,
        }
    )


def _table(rows: Sequence[tuple[Any, ...]], names: str, since: np.datetime64) -> pa.Table:
    """Rows as a table; columns named `_at` are hours since `since`, told to the second."""
    import numpy as np
    import pyarrow as pa

    columns = {}
    for place, name in enumerate(names.split()):
        values = [row[place] for row in rows]
        if name.endswith("_at"):
            seconds = np.rint(np.array(values, float) * HOUR).astype("timedelta64[s]")
            columns[name] = pa.array(since + seconds)
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)


def _numbered(rows: list[tuple[Any, ...]], names: str, since: np.datetime64) -> pa.Table:
    """The same of what happened to machines, numbered in the order in which it happened."""
    rows = sorted(rows, key=lambda row: (row[1], row[0]))
    return _table([(number, *row) for number, row in enumerate(rows, 1)], names, since)


def fill(
    database: Path,
    stream: Path,
    world: World | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, int]:
    """Fill an SQLite file and the topic `readings` of an embedded log, unless they hold this world.

    The stream is filled first, so that a file that is there means that all is; what a crash left
    out is added the next time.

    Args:
        database: the file; it appears, or is replaced, in one step.
        stream: the folder of topics.
        world: what is simulated; None is the demo's.
        progress: told once per hundred thousand events.

    Returns:
        `readings` and the tables of the database to the number of events or rows that were added.

    Raises:
        MendableError: the file or the folder cannot be written.
    """
    world = world or World()
    edition = crc32(repr(world).encode()) >> 1 or 1
    if is_of_edition(database, edition) and readings_in(stream):
        return dict.fromkeys(("readings", *_TABLES), 0)
    progress(
        f"plant: simulating {world.days} days of {len(world.models) * world.machines} machines"
    )
    plant = simulate(world)
    return {
        "readings": fill_stream(stream, plant.readings, progress),
        **write_database(database, plant.tables, edition),
    }


def fill_stream(stream: Path, readings: pa.Table, progress: Callable[[str], None]) -> int:
    """Append the readings that the topic does not hold yet, as JSON; the key is the machine.

    Raises:
        MendableError: the folder cannot be written.
    """
    try:
        return fill_topic(
            stream,
            "readings",
            readings.drop_columns(["arrived_at"]),
            readings["machine_id"],
            readings["arrived_at"],
            progress,
        )
    except OSError as error:
        raise _cannot_write(stream, error) from None


def readings_in(stream: Path) -> int:
    """How many readings the stream holds."""
    return watermarks(stream, "readings", 0)[1] if (stream / "readings").exists() else 0


def is_of_edition(database: Path, edition: int) -> bool:
    """Whether the file was written by `write_database` with this number."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(database)) as connection:
            return bool(connection.execute("pragma user_version").fetchone() == (edition,))
    except sqlite3.DatabaseError:
        return False


def write_database(database: Path, tables: dict[str, pa.Table], edition: int) -> dict[str, int]:
    """Write a plant's tables into an SQLite file, which appears in one step; table to rows.

    Raises:
        MendableError: the file cannot be written.
    """
    partial = database.with_name(f"{database.name}.partial")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as connection:
            for name, columns in _TABLES.items():
                connection.execute(f"create table {name} ({columns})")
                marks = ", ".join("?" * tables[name].num_columns)
                connection.executemany(f"insert into {name} values ({marks})", _rows(tables[name]))
            connection.execute(f"pragma user_version = {edition}")
            connection.commit()
        partial.replace(database)
    except (OSError, sqlite3.OperationalError) as error:
        raise _cannot_write(database, error) from None
    return {name: tables[name].num_rows for name in _TABLES}


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows as SQLite takes them: times as text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for column in table.columns:
        if pa.types.is_timestamp(column.type):
            column = pc.strftime(column.cast(pa.timestamp("s")), "%Y-%m-%d %H:%M:%S")
        columns.append(column.to_pylist())
    return zip(*columns, strict=True)


def _cannot_write(place: Path, error: Exception) -> MendableError:
    return MendableError(
        f"the plant's data in {place}",
        expected="a folder this user can write, and 200 MB of room",
        arrived=f"{type(error).__name__}: {error}",
        mend="make room, or set WATERSHED_DATA_DIR to another folder in .env; then run again",
    )
