"""The machines' state from the readings that have landed, summed up by the database instead of taken in one by one.

It is what `SensorWindows.add` makes of them in the order of their arrival. Nearly all come once and in
the order of time. Those that do not are found by passes over arrays of sensors and times, and left out
of the sums where they do not count.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestration.streaming.sensor_plant import (
    HOUR,
    LATENESS,
    MOST_VALUE,
    REMEMBERED,
    WINDOWS,
    HourSums,
    Landed,
    LandedMachine,
    LandedSensor,
    Plant,
    mark_of,
)

if TYPE_CHECKING:
    import duckdb

_LEAST = -(1 << 62)
_DAYS_HOURS = WINDOWS[-1] + LATENESS // HOUR

# As int_readings__hourly has it: on from the last hour in which a fair part of the machines spoke.
PRESENT = """
    spoken as (
        select hour, count(distinct machine_id) as machines, lag(hour) over (order by hour) as before
        from heard group by 1
    ),
    clock as (
        select coalesce(min(hour), 1000000000000) as ahead_from from spoken
        where hour >= before + 25
            and hour > (
                select max(hour) from spoken
                where machines * 10 >= (select median(machines) from spoken)
            )
    )
"""
"""`clock`, made of `heard` (machine_id and hour): from its hour `ahead_from` on, clocks are ahead."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def landed_hours(
    connection: duckdb.DuckDBPyConnection,
    arrived: str,
    plant: Plant,
    machines: Collection[str] | None = None,
) -> Landed:
    """What the features of a machine's next hour are made of.

    That is its last day, as far back as a reading may be late, its episode's first hours, and the last
    hour of every sensor.

    Args:
        connection: to the warehouse.
        arrived: SQL of the readings, with `part` and `place`.
        plant: whose machines and episodes these are.
        machines: only of these.
    """
    ask = connection.execute
    names = _register(connection, plant, machines)
    ask(
        f"""
        create or replace temp table heard as
        select machine_id, sensor, epoch_us(read_at) // {HOUR} as hour from ({arrived}) group by all
        """
    )
    ask(
        f"""
        create or replace temp table wanted as
        with {PRESENT},
        present as (
            select number, starts, hour,
                max(hour) over (partition by machine_id) as last_hour,
                max(hour) over (partition by number) as last_of_sensor
            from heard join registered using (machine_id, sensor) cross join clock
            where hour < ahead_from
        ),
        placed as (
            select *, list_max(list_filter(starts, start -> start <= last_hour)) as first_hour
            from present
        )
        select number, hour from placed
        where hour >= last_hour - {_DAYS_HOURS} or hour = last_of_sensor
            or hour between first_hour and first_hour + {plant.baseline_hours - 1}
        """
    )
    ask(
        f"""
        create or replace temp table taken as
        with valued as (
            select s.number, epoch_us(r.read_at) as at_us, r.value, r.unit, part, place, _loaded_at,
                least_value, most_value,
                case when r.unit = s.unit then r.value else r.value * factor + addend end as converted
            from ({arrived}) as r
            join registered as s on r.machine_id = s.machine_id and r.sensor = s.sensor
            join wanted as w on s.number = w.number and epoch_us(r.read_at) // {HOUR} = w.hour
            left join conversions as c on r.unit = c.unit and s.unit = c.to_unit
        )
        select number, at_us, value, unit, part,
            case when abs(converted) <= {MOST_VALUE}
                and converted >= least_value and converted <= most_value
                then cast(floor(converted * 1e6 + 0.5) as bigint) end as micros
        from valued order by _loaded_at, part, place
        """
    )
    columns = ask("select number, at_us, micros is not null, part from taken").to_arrow_table()
    number, at, fits, part = (column.to_numpy() for column in columns.columns)
    del columns
    ids, machine_of = np.unique([machine_id for machine_id, _ in names], return_inverse=True)
    arrival = _Arrival(number, machine_of.astype(np.int32)[number], at, fits)
    flags = [(*names[one], when // HOUR, 0) for one, when in _conflicting(connection, arrival)]
    for kind, rows in ((1, arrival.is_late), (2, arrival.is_rejected)):
        flags += [
            (*names[int(number[row])], int(at[row]) // HOUR, kind)
            for row in np.flatnonzero(rows).tolist()
        ]
    return Landed(
        [HourSums(*names[one], *rest) for one, *rest in _sums(connection, arrival)],
        flags,
        list(_sensors(connection, names, arrival)),
        list(_machines(ids.tolist(), arrival, part)),
        {
            int(p): int(arrival.hour[arrival.counts & (part == p)].max())
            for p in np.unique(part[arrival.counts])
        },
    )


class _Arrival:
    """The readings in the order of their arrival, and what each is.

    Attributes:
        sensor, machine, at, hour: of each reading, by number.
        is_again: there is an earlier one of the same sensor and time.
        is_too_late: its machine was more than `LATENESS` ahead.
        is_late: its sensor was ahead. `is_rejected`: its value is none. Of both none is there again.
        counts: it goes into its hour's sums.
    """

    def __init__(self, sensor: Ints, machine: Ints, at: Ints, fits: Bools) -> None:
        self.sensor, self.machine, self.at, self.hour = sensor, machine, at, at // HOUR
        self.by_sensor = np.argsort(sensor, kind="stable")
        self.sensors = list(_groups(sensor[self.by_sensor]))
        self.by_machine = np.argsort(machine, kind="stable")
        self.machines = list(_groups(machine[self.by_machine]))
        is_first = np.ones(len(at), bool)
        for start, stop in self._disordered(at):
            rows = self.by_sensor[start:stop]
            is_first[rows] = False
            is_first[rows[np.unique(at[rows], return_index=True)[1]]] = True
        self.is_again = ~is_first
        known = np.where(fits & is_first, at, _LEAST)[self.by_machine]
        self.is_too_late = np.empty(len(at), bool)
        self.is_too_late[self.by_machine] = (
            at[self.by_machine] < _most_before(known, self.machines) - LATENESS
        )
        heard = np.where(self.is_too_late, _LEAST, at)
        self.is_late = np.zeros(len(at), bool)
        for start, stop in self._disordered(heard):
            rows = self.by_sensor[start:stop]
            self.is_late[rows] = heard[rows] < _most_before(heard[rows], [(0, len(rows))])
        taken = is_first & ~self.is_too_late
        self.is_late &= taken
        self.is_rejected = taken & ~fits
        self.counts = taken & fits

    def _disordered(self, at: Ints) -> Iterator[tuple[int, int]]:
        """The sensors (where they stand in `by_sensor`) whose times do not always rise."""
        for start, stop in self.sensors:
            own = at[self.by_sensor[start:stop]]
            if (own[1:] <= own[:-1]).any():
                yield start, stop


def _most_before(values: Ints, groups: Iterable[tuple[int, int]]) -> Ints:
    """Of each value the greatest of its group that stands before it."""
    most = np.full(len(values), _LEAST)
    for start, stop in groups:
        np.maximum.accumulate(values[start : stop - 1], out=most[start + 1 : stop])
    return most


def _groups(values: Ints) -> Iterator[tuple[int, int]]:
    """Where each run of equal values begins and ends."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return pairwise([0, *edges.tolist(), len(values)]) if len(values) else iter(())


def _register(
    connection: duckdb.DuckDBPyConnection, plant: Plant, machines: Collection[str] | None
) -> list[tuple[str, str]]:
    """Tables of the machines' sensors and of the conversions; the sensors' names by number."""
    import pyarrow as pa

    sensors = [
        (machine_id, sensor, spec, [-(-start // HOUR) for start in record.starts])
        for machine_id, record in plant.machines.items()
        if machines is None or machine_id in machines
        for sensor, spec in plant.sensors.get(record.machine_model, {}).items()
    ]
    infinite = float("inf")
    columns = {
        "number": (pa.int32(), range(len(sensors))),
        "machine_id": (pa.string(), [machine_id for machine_id, *_ in sensors]),
        "sensor": (pa.string(), [sensor for _, sensor, *_ in sensors]),
        "unit": (pa.string(), [spec.unit for *_, spec, _ in sensors]),
        "least_value": (
            pa.float64(),
            [-infinite if spec.least is None else spec.least for *_, spec, _ in sensors],
        ),
        "most_value": (
            pa.float64(),
            [infinite if spec.most is None else spec.most for *_, spec, _ in sensors],
        ),
        "starts": (pa.list_(pa.int64()), [starts for *_, starts in sensors]),
    }
    connection.register(
        "registered", pa.table({n: pa.array(v, t) for n, (t, v) in columns.items()})
    )
    rows = [(*units, *numbers) for units, numbers in plant.conversions.items()]
    kinds = (pa.string(), pa.string(), pa.float64(), pa.float64())
    names = ("unit", "to_unit", "factor", "addend")
    connection.register(
        "conversions",
        pa.table(
            {
                name: pa.array([row[n] for row in rows], kind)
                for n, (name, kind) in enumerate(zip(names, kinds, strict=True))
            }
        ),
    )
    return [(machine_id, sensor) for machine_id, sensor, *_ in sensors]


def _rows(connection: duckdb.DuckDBPyConnection, name: str, rows: Ints) -> None:
    """A table of readings' numbers."""
    import pyarrow as pa

    connection.register(name, pa.table({"row": pa.array(rows, pa.int64())}))


def _sums(connection: duckdb.DuckDBPyConnection, arrival: _Arrival) -> list[tuple[int, ...]]:
    """Per sensor and hour what `HourSums` has."""
    _rows(connection, "left_out", np.flatnonzero(arrival.is_again | arrival.is_too_late))
    return connection.execute(
        f"""
        select number, at_us // {HOUR}, count(*), sum(micros),
            sum(cast(micros as hugeint) * micros), min(micros), max(micros), max(at_us)
        from taken
        where micros is not null and rowid not in (select "row" from left_out)
        group by 1, 2
        """
    ).fetchall()


def _conflicting(
    connection: duckdb.DuckDBPyConnection, arrival: _Arrival
) -> Iterator[tuple[int, int]]:
    """Sensor and time of the readings that are another one's, with another value."""
    again = arrival.is_again & ~arrival.is_too_late
    if not again.any():
        return
    times = np.unique(arrival.at[again])
    same = np.isin(arrival.at, times) & np.isin(arrival.sensor, np.unique(arrival.sensor[again]))
    _rows(connection, "looked_at", np.flatnonzero(same & ~arrival.is_too_late))
    seen: dict[tuple[int, int], set[tuple[float, str]]] = {}
    for one, at, value, unit in connection.execute(
        """
        select number, at_us, value, unit from taken
        where rowid in (select "row" from looked_at) order by taken.rowid
        """
    ).fetchall():
        known = seen.setdefault((one, at), set())
        if known and (value, unit) not in known:
            yield one, at
        known.add((value, unit))


def _sensors(
    connection: duckdb.DuckDBPyConnection, names: list[tuple[str, str]], arrival: _Arrival
) -> Iterator[LandedSensor]:
    """Per sensor its newest time, and times and marks of what is remembered."""
    heard = np.where(arrival.is_too_late, 0, arrival.at)
    lasts = [
        arrival.by_sensor[max(start, stop - REMEMBERED) : stop] for start, stop in arrival.sensors
    ]
    _rows(connection, "remembered", np.concatenate(lasts) if lasts else np.empty(0, np.int64))
    columns = connection.execute(
        """
        select number, at_us, value, unit from taken
        where rowid in (select "row" from remembered) order by number, taken.rowid
        """
    ).to_arrow_table()
    times = columns["at_us"].to_numpy()
    marks = [
        mark_of(*pair)
        for pair in zip(*(columns[c].to_pylist() for c in ("value", "unit")), strict=True)
    ]
    begin = 0
    for (start, stop), rows in zip(arrival.sensors, lasts, strict=True):
        end = begin + len(rows)
        newest = int(heard[arrival.by_sensor[start:stop]].max())
        machine_id, sensor = names[int(arrival.sensor[rows[0]])]
        yield LandedSensor(
            machine_id, sensor, newest,
            array("q", times[begin:end].tobytes()), array("q", marks[begin:end]),
        )  # fmt: skip
        begin = end


def _machines(ids: list[str], arrival: _Arrival, part: Ints) -> Iterator[LandedMachine]:
    """Per machine its newest time, its last hour, the partition, and whether that hour is open."""
    ticked = {}
    for one in np.unique(part[arrival.counts]).tolist():
        rows = np.flatnonzero(arrival.counts & (part == one))
        ticked[one] = rows[np.argmax(arrival.hour[rows])]
    for start, stop in arrival.machines:
        rows = arrival.by_machine[start:stop]
        rows = rows[arrival.counts[rows]]
        if not len(rows):
            continue
        opened = rows[np.argmax(arrival.hour[rows])]
        own, hour = int(part[rows[-1]]), int(arrival.hour[opened])
        # Closed by the reading that moved the partition's clock on, if it came later.
        ahead = bool(arrival.hour[ticked[own]] > hour + 1 and ticked[own] > opened)
        machine_id, newest = ids[int(arrival.machine[rows[0]])], int(arrival.at[rows].max())
        yield LandedMachine(machine_id, newest, hour, own, not ahead)
