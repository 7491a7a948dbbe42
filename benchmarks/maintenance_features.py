"""A sensor's window features in SQL against pandas: `python -m benchmarks.maintenance_features`.

*SQL* is every model from staged readings to `feat_sensor__windows` as dbt compiles it, in a process of its own, on a
DuckDB file, with a memory limit of 2 GB. *pandas* is what one writes without it: the readings with their reference
taken off, `groupby(...).rolling("24h")` over them, the last row of each hour kept. It is given the episodes and the
references ready. Both make the same numbers, which is checked. Readings are made up: a fleet whose machines have five
sensors, one reading a minute each, over a fortnight with maintenance in the middle.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from rich.console import Console
from rich.table import Table

from benchmarks.timing import BIN, ROOT, Run, run

if TYPE_CHECKING:
    import pandas as pd

MEMORY_LIMIT = "2GB"
SENSORS = 5
MINUTES = 20_420
WINDOWS = (6, 24)
MODELS = (
    "intermediate/int_readings__hourly",
    "intermediate/int_machine_episodes__started",
    "intermediate/int_machine_hours__conditioned",
    "intermediate/int_sensor_references__fixed",
    "features/predictive_maintenance/feat_sensor__windows",
)
"""From staged readings to features, in the order in which they are built."""


def compile_models(folder: Path) -> Path:
    """The models as dbt compiles them; the folder that they are in."""
    subprocess.run(
        [
            *(BIN / "dbt", "compile", "--quiet", "--target-path", folder, "--select"),
            *(Path(model).name for model in MODELS),
        ],
        cwd=ROOT / "dbt_project",
        env={**os.environ, "WATERSHED_DATA_DIR": str(folder / "data")},
        stdout=subprocess.DEVNULL,  # it prints the SQL
        check=True,
    )
    return folder / "compiled" / "watershed" / "models"


def fill(file: Path, machines: int) -> int:
    """Staged tables of a fleet of so many machines; how many readings."""
    with duckdb.connect(file) as connection:
        connection.execute(f"""
            create schema seeds;
            create schema staging;
            create table seeds.maintenance_policy as
                select 24::bigint as baseline_hours, 60::bigint as reference_machine_hours;
            create table seeds.unit_conversions as
                select 'degF' as unit, 'degC' as to_unit, 5 / 9::double as factor, -160 / 9::double as addend;
            create table staging.stg_plant_db__machines as
                select 'press_' || i as machine_id, 'press' as machine_model, timestamp '2025-01-01' as commissioned_at
                from range({machines}) as machines (i);
            create table staging.stg_plant_db__sensors as
                select
                    'press' as machine_model, 'sensor_' || s as sensor, 'degC' as unit, -50.0::double as min_value,
                    500.0::double as max_value, false as is_setting, cast(null as double) as setting_step
                from range({SENSORS}) as sensors (s);
            create table staging.stg_plant_db__maintenance as
                select
                    'press_' || i as machine_id, 'preventive' as kind,
                    timestamp '2025-01-07' + to_minutes(cast(i * 7 % 1440 as bigint)) as performed_at
                from range({machines}) as machines (i);
            create table staging.stg_plant_db__failures (machine_id varchar, failed_at timestamp);
            create table staging.stg_plant_stream__readings as
                select
                    'press_' || m as machine_id,
                    timestamp '2025-01-01' + to_seconds(cast(minute * 60 + hash(m, s) % 60 as bigint)) as read_at,
                    'sensor_' || s as sensor,
                    20 + s * 30 + 5 * sin(minute / 300.0) + minute / 5000 + hash(m, s, minute) % 1000 / 250 as value,
                    'degC' as unit,
                    1::bigint as arrivals_count,
                    false as is_late
                from
                    range({MINUTES}) as minutes (minute),
                    range({machines}) as machines (m),
                    range({SENSORS}) as sensors (s)
                where hash(s, m, minute) % 50 > 0
        """)
        ((rows,),) = connection.execute(
            "select count(*) from staging.stg_plant_stream__readings"
        ).fetchall()
    return int(rows)


def build(file: Path, models: Path) -> float:
    """Build the models in a DuckDB file with staged tables; the seconds it takes."""
    with duckdb.connect(
        file, config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(file.parent / "spilled")}
    ) as connection:
        connection.execute("create schema if not exists intermediate")
        connection.execute("create schema if not exists features")
        started = time.perf_counter()
        for model in MODELS:
            sql = (models / f"{model}.sql").read_text().replace('"lake".', "")
            layer, name = model.split("/")[0], model.split("/")[-1]
            connection.execute(f"create or replace table {layer}.{name} as {sql}")
        return time.perf_counter() - started


def in_sql(file: Path, models: Path) -> Run:
    """Seconds and peak memory of `build` in a process of its own, without its start."""
    script = (
        "import sys; from pathlib import Path; from benchmarks.maintenance_features import build;"
        " Path(sys.argv[3]).write_text(str(build(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    said = file.parent / "seconds"
    peak_mb = run([sys.executable, "-c", script, file, models, said]).peak_mb
    return Run(float(said.read_text()), peak_mb)


def in_pandas(readings: pd.DataFrame) -> pd.DataFrame:
    """The features of readings in the order of time, a row per machine, episode, sensor and hour."""
    readings["deviation"] = (readings["value"] - readings["mean"]).where(
        readings["hour_at"] >= readings["known_at"]
    )
    start = readings["hour_at"].min()
    hours = (readings["hour_at"] - start).dt.total_seconds() / 3600
    known = readings["deviation"].notna()
    readings["x"], readings["xx"] = hours.where(known), (hours * hours).where(known)
    readings["xy"] = hours * readings["deviation"]
    keys = ["machine_id", "episode_number", "sensor"]
    grouped = readings.groupby(keys, observed=True, sort=True)
    last = grouped["hour_at"].shift(-1) != readings["hour_at"]
    found = readings.loc[last, [*keys, "hour_at", "std"]].set_index([*keys, "hour_at"])
    for window in WINDOWS:
        rolling = readings.set_index("hour_at").groupby(keys, observed=True).rolling(f"{window}h")

        def ending(column: str, how: str, rolling=rolling) -> pd.Series:
            values = getattr(rolling[column], how)()
            return values[~values.index.duplicated(keep="last")]

        for how in ("count", "mean", "min", "max"):
            found[f"value_{how}_{window}h"] = ending("value", how)
        count, total = ending("deviation", "count"), ending("deviation", "sum")
        found[f"deviation_mean_{window}h"] = ending("deviation", "mean")
        found[f"deviation_std_{window}h"] = ending("deviation", "std")
        x, xx, xy = (ending(name, "sum") for name in ("x", "xx", "xy"))
        spread = count * xx - x * x
        found[f"deviation_slope_{window}h"] = (count * xy - x * total) / spread.where(spread > 0.5)
    started = readings["hour_at"] - readings["episode_started_at"]
    healthy = readings["deviation"].where(started.dt.total_seconds() < 24 * 3600)
    running = readings.assign(healthy=healthy, one=healthy.notna()).groupby(keys, observed=True)
    baseline = (
        running["healthy"].cumsum().groupby([readings[key] for key in keys], observed=True).ffill()
    ) / running["one"].cumsum()
    found["deviation_baseline"] = baseline[last].to_numpy()
    for window in WINDOWS:
        found[f"deviation_distance_{window}h"] = (
            found[f"deviation_mean_{window}h"] - found["deviation_baseline"]
        ) / found["std"]
    return found.reset_index()


def given_to_pandas(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Readings in the order of time, with their episode and their reference."""
    readings: pd.DataFrame = connection.execute("""
        select
            r.machine_id, r.sensor, date_trunc('hour', r.read_at) as hour_at, r.value, h.episode_number,
            h.episode_started_at, f.mean_micros / 1e6 as mean, f.std_micros / 1e6 as std, f.known_at
        from staging.stg_plant_stream__readings as r
        inner join intermediate.int_machine_hours__conditioned as h
            on r.machine_id = h.machine_id and date_trunc('hour', r.read_at) = h.hour_at
        inner join intermediate.int_sensor_references__fixed as f on r.sensor = f.sensor
        order by r.machine_id, h.episode_number, r.sensor, r.read_at
    """).df()
    return readings.astype({"machine_id": "category", "sensor": "category"})


def mismatches(connection: duckdb.DuckDBPyConnection, expected: pd.DataFrame) -> tuple[int, int]:
    """Rows, and values in which SQL and pandas differ by more than 1e-6 of the value (pandas adds up doubles)."""
    names = {
        f"{ours}_{window}h": f"{theirs}_{window}h"
        for window in WINDOWS
        for ours, theirs in (
            ("readings_count", "value_count"),
            *(
                (f"value_{how}", f"value_{how.replace('avg', 'mean')}")
                for how in ("avg", "min", "max")
            ),
            ("deviation_avg", "deviation_mean"),
            *((f"deviation_{how}", f"deviation_{how}") for how in ("std", "slope", "distance")),
        )
    } | {"deviation_baseline": "deviation_baseline"}
    differ = " + ".join(
        f"cast(coalesce(abs(f.{ours} - p.{theirs}) > 1e-6 * greatest(1, abs(f.{ours})),"
        f" (f.{ours} is null) <> (p.{theirs} is null or isnan(p.{theirs}))) as int)"
        for ours, theirs in names.items()
    )
    connection.register("expected", expected.astype({"machine_id": str, "sensor": str}))
    ((rows, found),) = connection.execute(
        f"select count(*), sum({differ}) from features.feat_sensor__windows as f"
        " inner join expected as p on f.machine_id = p.machine_id and f.sensor = p.sensor"
        " and f.as_of_at = p.hour_at + interval 1 hour and f.episode_number = p.episode_number"
    ).fetchall()
    connection.unregister("expected")
    assert rows == len(expected), f"{rows} of {len(expected)} hours are in both"
    return int(rows), int(found)


def measure(runs: int = 3) -> Iterator[tuple[str, ...]]:
    """Rows: memory, SQL against pandas on 10 M readings, and ten times the machines."""
    with tempfile.TemporaryDirectory() as folder:
        models = compile_models(Path(folder))
        few, many = Path(folder, "few.duckdb"), Path(folder, "many.duckdb")
        fill(few, machines=10)
        readings = fill(many, machines=100)
        built = [(in_sql(few, models), in_sql(many, models)) for _ in range(runs)]
        tenth = statistics.median(one.seconds for one, _ in built)
        ours = statistics.median(ten.seconds for _, ten in built)
        peak = max(ten.peak_mb for _, ten in built)
        yield (
            f"features of {readings:,} readings within a memory limit of {MEMORY_LIMIT}",
            f"{peak:,.0f} MB",
            "2,048 MB",
            f"{peak / 2048:.2f}",
            "<= 1",
        )
        with duckdb.connect(many, read_only=True) as connection:
            given = given_to_pandas(connection)
            started = time.perf_counter()
            expected = in_pandas(given)
            theirs = time.perf_counter() - started
            del given
            rows, differ = mismatches(connection, expected)
        yield (
            f"{rows:,} sensor-hours of them: pandas groupby-rolling / SQL ({differ} values differ)",
            f"{ours:.1f} s",
            f"{theirs:.1f} s",
            f"{theirs / ours:.1f}",
            ">= 10",
        )
        yield (
            "ten times the machines / the time of a tenth",
            f"{ours:.1f} s",
            f"{tenth:.1f} s",
            f"{ours / tenth:.1f}",
            "<= 11",
        )


def main() -> None:
    """Print the rows as a table; takes some minutes, most of them pandas'."""
    table = Table("claim", "measured", "against", "ratio", "to reach")
    for row in measure():
        table.add_row(*row)
        print(*row, sep=" | ", file=sys.stderr)
    Console().print(table)


if __name__ == "__main__":
    main()
