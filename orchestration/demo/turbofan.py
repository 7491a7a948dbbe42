"""The adapter for NASA's C-MAPSS turbofan sets: an engine is a machine, a cycle is an hour, each column a sensor.

So the ordinary pipeline's ordinary test month is the sets' standard protocol: the training fleet runs
and fails before the first of a month, as of which the month's model is trained; in that month runs the
test fleet, whose engines all are read for the last time in the same hour, and fail later by as many
hours as the set says that they have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from orchestration.demo.plant import (
    Plant,
    fill_stream,
    is_of_edition,
    readings_in,
    write_database,
)
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MODEL = "turbofan"
STARTS = datetime(2008, 1, 1)
"""When the training fleet is commissioned."""
SETTINGS = {"setting_1": 5.0, "setting_2": None, "setting_3": None}
"""The columns that say how an engine is flown; the first one's step tells the sets' flight conditions apart."""
SENSORS = (*SETTINGS, *(f"sensor_{number:02d}" for number in range(1, 22)))
"""The columns after unit and cycle, in the sets' order."""


class Fleets(NamedTuple):
    """A set as its files say it.

    Attributes:
        train, test: float64 n x 26: unit, cycle, settings and sensors; by unit and cycle.
        remaining: cycles that each test unit has left after its last, by unit.
    """

    train: Floats
    test: Floats
    remaining: Floats


def read_set(folder: Path, name: str) -> Fleets:
    """Read the three files of a set, plain or gzipped.

    Raises:
        MendableError: one is missing, or is not what a set's file is.
    """
    train, test = (_table(_file(folder, f"{kind}_{name}"), 26) for kind in ("train", "test"))
    file = _file(folder, f"RUL_{name}")
    remaining, units = _table(file, 1)[:, 0], len(set(test[:, 0]))
    if len(remaining) != units:
        raise _not_a_set(file, f"{units} lines, one per engine of the test file", len(remaining))
    return Fleets(train, test, remaining)


def as_plant(fleets: Fleets) -> Plant:
    """The fleets as a plant's database and readings.

    Raises:
        MendableError: a test engine's cycles do not fit into a month.
    """
    import numpy as np
    import pyarrow as pa

    last_cycles = [
        {int(unit): float(cycles[units == unit].max()) for unit in np.unique(units)}
        for units, cycles in ((fleet[:, 0], fleet[:, 1]) for fleet in fleets[:2])
    ]
    longest = max(last_cycles[1].values())
    tests = _test_month(STARTS + timedelta(hours=max(last_cycles[0].values())), longest)
    machines: list[tuple[str, datetime]] = []
    failures: list[tuple[datetime, str]] = []
    for unit, cycles in last_cycles[0].items():
        machines.append((f"train-{unit:03d}", STARTS))
        failures.append((STARTS + timedelta(hours=cycles), machines[-1][0]))
    for (unit, cycles), left in zip(last_cycles[1].items(), fleets.remaining.tolist(), strict=True):
        machines.append((f"test-{unit:03d}", tests + timedelta(hours=longest - cycles)))
        failures.append((tests + timedelta(hours=longest + left), machines[-1][0]))
    failures.sort()
    names = [machine for machine, _ in machines]
    commissioned = np.array([at for _, at in machines], "datetime64[s]")
    units = np.concatenate(
        [
            np.searchsorted(list(cycles), fleet[:, 0]) + before
            for cycles, fleet, before in zip(
                last_cycles, fleets[:2], (0, len(last_cycles[0])), strict=True
            )
        ]
    )
    rows = np.concatenate(fleets[:2])
    read_at = commissioned[units] + (rows[:, 1] * 3_600 - 1_800).astype("timedelta64[s]")
    order = np.lexsort((units, read_at))
    each = len(SENSORS)
    read_at = np.repeat(read_at[order], each)
    readings = {
        "machine_id": _words(np.repeat(units[order], each), names),
        "read_at": read_at.astype("datetime64[us]"),
        "sensor": _words(np.tile(np.arange(each), len(rows)), SENSORS),
        "value": rows[order, 2:].ravel(),
        "unit": _words(np.zeros(len(read_at), int), ["1"]),
        "arrived_at": (read_at + np.timedelta64(1, "s")).astype("datetime64[us]"),
    }
    nothing = {"id": pa.int64(), "machine": pa.string(), "at": pa.timestamp("us")}
    tables = {
        "machines": pa.table(
            {
                "machine_id": names,
                "machine_model": [MODEL] * len(names),
                "commissioned_at": commissioned.astype("datetime64[us]"),
            }
        ),
        "sensors": pa.table(
            {
                "machine_model": [MODEL] * each,
                "sensor": list(SENSORS),
                "unit": ["1"] * each,
                "min_value": pa.nulls(each, pa.float64()),
                "max_value": pa.nulls(each, pa.float64()),
                "is_setting": [sensor in SETTINGS for sensor in SENSORS],
                "setting_step": pa.array([SETTINGS.get(sensor) for sensor in SENSORS]),
            }
        ),
        "maintenance": pa.schema(
            {**nothing, "kind": pa.string(), "component": pa.string()}
        ).empty_table(),
        "failures": pa.table(
            {
                "failure_id": list(range(1, len(failures) + 1)),
                "machine_id": [machine for _, machine in failures],
                "failed_at": np.array([at for at, _ in failures], "datetime64[us]"),
                "component": ["engine"] * len(failures),
            }
        ),
        "machine_errors": pa.schema({**nothing, "code": pa.string()}).empty_table(),
    }
    return Plant(tables, pa.table(readings))


def fill(
    folder: Path,
    name: str,
    database: Path,
    stream: Path,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, int]:
    """Fill a plant's SQLite file and event log with a set, unless they hold it.

    Args:
        folder: where the set's files are.
        name: the set, such as `FD001`.
        database: the file; it appears in one step, after the stream is filled.
        stream: the folder of topics.
        progress: told once per hundred thousand events.

    Returns:
        `readings` and the tables of the database to the number of events or rows that were added.

    Raises:
        MendableError: the set cannot be read, another one is there, or nothing can be written.
    """
    fleets = read_set(folder, name)
    edition = crc32(b"".join(part.tobytes() for part in fleets)) >> 1 or 1
    if database.exists():
        if not is_of_edition(database, edition) or not readings_in(stream):
            raise MendableError(
                f"the set {name} in {database.parent}",
                expected="a folder that holds this set's engines, or none",
                arrived="what came of other files",
                mend=f"rm -r '{database.parent}', then run again",
            )
        return dict.fromkeys(("readings", "machines", "failures"), 0)
    plant = as_plant(fleets)
    return {
        "readings": fill_stream(stream, plant.readings, progress),
        **write_database(database, plant.tables, edition),
    }


def _file(folder: Path, stem: str) -> Path:
    for file in (folder / f"{stem}.txt", folder / f"{stem}.txt.gz"):
        if file.is_file():
            return file
    raise MendableError(
        f"the turbofan file {folder / stem}.txt",
        expected="train_, test_ and RUL_<set>.txt of NASA's C-MAPSS, plain or .gz",
        arrived="no such file",
        mend="name the folder that holds them, and a set that is there: make turbofan folder=... set=FD001",
    )


def _table(file: Path, columns: int) -> Floats:
    """The numbers of a file, which has so many columns; by the first two of them if it has engines."""
    import warnings

    import numpy as np

    expected = f"lines of {columns} numbers" if columns > 1 else "a number per line"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is told below
            table = np.loadtxt(file, ndmin=2)
    except (ValueError, OSError, EOFError) as error:
        raise _not_a_set(file, expected, str(error)) from None
    if table.size == 0 or table.shape[1] != columns or not np.isfinite(table).all():
        raise _not_a_set(file, expected, f"{len(table)} lines of {table.shape[-1]}")
    if columns > 1:
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        if table[:, :2].min() < 1:
            raise _not_a_set(file, "units and cycles from 1", table[:, :2].min())
    return table


def _not_a_set(file: Path, expected: str, arrived: Any) -> MendableError:
    return MendableError(
        f"the turbofan file {file}",
        expected=expected,
        arrived=str(arrived),
        mend="take the file again from NASA's C-MAPSS data set",
    )


def _test_month(earliest: datetime, hours: float) -> datetime:
    """The first month that begins at `earliest` or later and has so many hours."""
    for month in _months():
        if month >= earliest and (_next(month) - month) >= timedelta(hours=hours):
            return month
    raise MendableError(
        "the set's test engines",
        expected="no more than 744 cycles, which are the hours of a month, and training engines of a year's",
        arrived=f"{hours:,.0f} cycles, after training engines that run until {earliest:%Y-%m-%d}",
        mend="split the engines that run longer",
    )


def _months() -> Iterator[datetime]:
    month = _next(STARTS)
    for _ in range(12):
        yield month
        month = _next(month)


def _next(month: datetime) -> datetime:
    return (month + timedelta(days=31)).replace(day=1)


def _words(codes: Any, words: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(list(words)))
