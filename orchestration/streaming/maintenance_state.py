"""What the warehouse knows when the machines' scorer starts, and what of it changes while it runs.

The plant is what the last build made of its database; the stream's rows are read from the raw tables,
since a build may be behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from orchestration.connectors import Position
from orchestration.errors import MendableError
from orchestration.learning.warning_states import Policy, policy_of
from orchestration.settings import Settings
from orchestration.streaming.champion import Watch
from orchestration.streaming.landed_hours import PRESENT, landed_hours
from orchestration.streaming.maintenance_events import Warned
from orchestration.streaming.sensor_plant import (
    HOUR,
    HourSums,
    Landed,
    Plant,
    Record,
    Reference,
    Spec,
)
from orchestration.streaming.topics import landed_position, one_moment
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    import duckdb

STREAM = "plant_stream"
CONSECUTIVE = 24
"""The last scores of a machine, from which it is known again where its warning stands."""

_MODELS = (
    ("staging", "stg_plant_db__machines"),
    ("staging", "stg_plant_db__sensors"),
    ("staging", "stg_plant_db__maintenance"),
    ("staging", "stg_plant_db__failures"),
    ("staging", "stg_plant_db__machine_errors"),
    ("intermediate", "int_machine_episodes__started"),
    ("intermediate", "int_sensor_references__fixed"),
    ("seeds", "maintenance_policy"),
    ("seeds", "unit_conversions"),
)
_READINGS = (
    "machine_id varchar, read_at timestamp, sensor varchar, value double, unit varchar,"
    " _loaded_at timestamp, _source_position varchar"
)
_ARRIVED = """
    select machine_id, read_at, sensor, value, unit, _loaded_at,
        cast(split_part(_source_position, '/', -2) as integer) as part,
        cast(split_part(_source_position, '/', -1) as bigint) as place
    from {table}
"""


class Said(NamedTuple):
    """What was said of a machine's hour; `as_of` in microseconds, `part` and `place` of the reading."""

    machine_id: str
    as_of: int
    episode_number: int
    failure_probability: float
    remaining_hours: float | None
    reasons: str
    model_version: str
    part: int
    place: int


class Snapshot:
    """The landed readings, and what was said of them, at one moment."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def position(self, entity: str) -> Position:
        """How far a topic of the stream has landed."""
        return landed_position(self._connection, f"{STREAM}__{entity}")

    def plant(self) -> tuple[Plant, Policy] | None:
        """The plant as the last build has it; None if none has been built."""
        if not all(table_exists(self._connection, *model) for model in _MODELS):
            return None
        ask = self._connection.execute
        row = ask("from seeds.maintenance_policy").fetchone()
        names = [column[0] for column in self._connection.description or ()]
        assert row is not None, "a seed of one row"
        policy = policy_of(zip(names, row, strict=True))
        starts = self._times("intermediate.int_machine_episodes__started", "started_at")
        done = "staging.stg_plant_db__maintenance where kind"
        works = self._times(f"{done} <> 'recalibration'", "performed_at")
        again = self._times(f"{done} = 'recalibration'", "performed_at")
        failures = self._times("staging.stg_plant_db__failures", "failed_at")
        errors = self._times("staging.stg_plant_db__machine_errors", "occurred_at")
        machines = {
            one: Record(
                model, starts[one], *(times.get(one, ()) for times in (works, again, failures, errors))
            )
            for one, model in ask(
                "select machine_id, machine_model from staging.stg_plant_db__machines"
            ).fetchall()
            if one in starts
        }  # fmt: skip
        sensors: dict[str, dict[str, Spec]] = {}
        for model, sensor, *spec in ask(
            """
            select machine_model, sensor, unit, min_value, max_value,
                case when is_setting and setting_step * 1e6 >= 1
                    then cast(floor(setting_step * 1e6 + 0.5) as bigint) else 0 end
            from staging.stg_plant_db__sensors
            """
        ).fetchall():
            sensors.setdefault(model, {})[sensor] = Spec(*spec)
        references = {
            (model, sensor, condition): Reference(mean, std, known)
            for model, sensor, condition, mean, std, known in ask(
                """
                select machine_model, sensor, condition_id, mean_micros, std_micros,
                    epoch_us(known_at) // 3600000000
                from intermediate.int_sensor_references__fixed
                """
            ).fetchall()
        }
        conversions = {
            (unit, to): (factor, addend)
            for unit, to, factor, addend in ask(
                "select unit, to_unit, cast(factor as double), cast(addend as double)"
                " from seeds.unit_conversions"
            ).fetchall()
        }
        return Plant(machines, sensors, conversions, references, policy.baseline_hours), policy

    def _times(self, table: str, column: str) -> dict[str, tuple[int, ...]]:
        """Per machine when something happened, in order."""
        rows = self._connection.execute(
            f"select machine_id, list(epoch_us({column}) order by {column}) from {table} group by 1"
        ).fetchall()
        return {machine_id: tuple(times) for machine_id, times in rows}

    def _arrived(self) -> str:
        table = f"raw.{STREAM}__readings"
        if not table_exists(self._connection, "raw", f"{STREAM}__readings"):
            table = "landed_readings"
            self._connection.execute(f"create temp table if not exists {table} ({_READINGS})")
        return _ARRIVED.format(table=table)

    def last_day(self) -> dict[int, int]:
        """Per partition the place of the first reading of the last day that has landed."""
        rows = self._connection.execute(
            f"""
            with arrived as ({self._arrived()}),
            heard as (
                select machine_id, epoch_us(read_at) // {HOUR} as hour, part, min(place) as place
                from arrived group by all
            ),
            {PRESENT},
            present as (select heard.* from heard, clock where hour < ahead_from)
            select part, min(place) from present
            where hour >= (select max(hour) from present) - 24
            group by 1
            """
        ).fetchall()
        return dict(rows)

    def readings(
        self,
        before: Mapping[int, int] | None,
        plant: Plant,
        machines: Collection[str] | None = None,
    ) -> Landed:
        """The readings that the features of a machine's next hour are made of, summed up.

        Args:
            before: per partition of the topic, the offset to stop before; None: all that landed.
            plant: whose machines and episodes these are.
            machines: only of these.
        """
        arrived = self._arrived()
        if before is not None:
            places = [f"(part = {part} and place < {at})" for part, at in before.items()]
            arrived = f"from ({arrived}) where {' or '.join(places) or 'false'}"
        return landed_hours(self._connection, arrived, plant, machines)

    def said(self, last: int) -> list[Said]:
        """Of each partition of the readings the last hours that were said, and of each machine the last."""
        if not table_exists(self._connection, "raw", f"{STREAM}__machine_health"):
            return []
        rows = self._connection.execute(
            f"""
            select machine_id, epoch_us(as_of_at), episode_number, failure_probability,
                remaining_hours, reasons, model_version,
                cast(split_part(reading_position, '/', -2) as integer) as part,
                cast(split_part(reading_position, '/', -1) as bigint) as place
            from raw.{STREAM}__machine_health
            qualify row_number() over (partition by part order by place desc) <= {last}
                or row_number() over (partition by machine_id order by as_of_at desc) <= {CONSECUTIVE}
            """
        ).fetchall()
        return [Said(*row) for row in rows]

    def features(self, since: int) -> set[tuple[str, int, str]]:
        """Machine, time (microseconds) and sensor of the features that landed, as of `since` or later."""
        if not table_exists(self._connection, "raw", f"{STREAM}__sensor_features"):
            return set()
        rows = self._connection.execute(
            f"""
            select machine_id, epoch_us(as_of_at), sensor from raw.{STREAM}__sensor_features
            where epoch_us(as_of_at) >= {since}
            """
        ).fetchall()
        return set(rows)

    def warnings(self) -> list[Warned]:
        """Of each machine the last warning that was opened, in every state that landed."""
        if not table_exists(self._connection, "raw", f"{STREAM}__warnings"):
            return []
        names = Warned.__struct_fields__
        rows = self._connection.execute(
            f"""
            select {", ".join(names)} from raw.{STREAM}__warnings
            qualify warning_id = first_value(warning_id) over (
                partition by machine_id order by (state = 'opened') desc, as_of_at desc
            )
            """
        ).fetchall()
        found = [msgspec.convert(dict(zip(names, row, strict=True)), Warned) for row in rows]
        for one in found:
            one.changed_at = one.changed_at.replace(tzinfo=UTC)
            one.as_of_at = one.as_of_at.replace(tzinfo=UTC)
        return found


@contextmanager
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    """The warehouse as it stands, for as long as the block runs.

    Raises:
        MendableError: the warehouse cannot be read.
    """
    with one_moment(settings) as connection:
        yield Snapshot(connection)


class KnownPlant(Watch):
    """The plant as the last build has it, read again every minute. Use it in `with`.

    Args:
        settings: which warehouse.
        say: told when there is no plant yet, and when it was read again.

    Attributes:
        plant: what is known by now.
        policy: when warnings open and close; None while nothing has been built.
        news: what became known since the start: the plant, and the landed hours to recall with it.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        super().__init__("plant")
        self._settings, self._say, self._told = settings, say, ""
        self._has_looked = False
        self.plant = Plant()
        self.policy: Policy | None = None
        self.news: deque[tuple[Plant, list[HourSums]]] = deque()

    def look(self) -> None:
        """Take in what is new."""
        import duckdb

        try:
            with snapshot(self._settings) as landed:
                found = landed.plant()
                if found is None:
                    self._tell("no build knows of the plant's machines yet: make build")
                    return
                plant, policy = found
                self.policy = policy
                if plant == self.plant:
                    return
                before = self.plant
                changed = [
                    machine_id
                    for machine_id, record in plant.machines.items()
                    if machine_id not in before.machines
                    or before.machines[machine_id].starts != record.starts
                    or plant.sensors.get(record.machine_model)
                    != before.sensors.get(record.machine_model)
                ]
                # A start reads them itself.
                hours = landed.readings(None, plant, changed).hours if self._has_looked else []
            self.plant = plant
            self.news.append((plant, hours))
            self._tell(
                f"{len(plant.machines):,} machines are known, {len(plant.references):,} references"
            )
        except (MendableError, duckdb.Error) as error:
            self._tell(f"the plant's register cannot be read ({type(error).__name__})")
        finally:
            self._has_looked = True

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._say(line)
        self._told = line
