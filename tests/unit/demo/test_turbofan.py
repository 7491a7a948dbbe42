"""The turbofan adapter: engines become machines so that the ordinary test month is the standard protocol."""

from __future__ import annotations

import gzip
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestration.demo.turbofan import SENSORS, as_plant, fill, read_set
from orchestration.errors import MendableError


def write_set(
    folder: Path, train: dict[int, int], test: dict[int, int], remaining: list[int]
) -> None:
    """A set of the same format: unit to cycles, six flight conditions, sensors that wear out."""
    random = np.random.default_rng(7)
    altitudes = np.array([0.0, 10, 20, 25, 35, 42])
    folder.mkdir(parents=True, exist_ok=True)
    for name, fleet in (("train", train), ("test", test)):
        lines = []
        for unit, cycles in fleet.items():
            condition = random.integers(0, 6, cycles)
            for cycle in range(1, cycles + 1):
                settings = (altitudes[condition[cycle - 1]] + random.normal(0, 0.002), 0.6, 100.0)
                sensors = 100 * condition[cycle - 1] + random.normal(0, 1, 21) + cycle / 20
                numbers = " ".join(f"{v:.4f}" for v in (*settings, *sensors))
                lines.append(f"{unit} {cycle} {numbers}  \n")
        with gzip.open(folder / f"{name}_FD009.txt.gz", "wt") as file:
            file.writelines(lines)
    (folder / "RUL_FD009.txt").write_text("".join(f"{left} \n" for left in remaining))


@pytest.fixture
def folder(tmp_path) -> Path:
    write_set(tmp_path / "set", {1: 40, 2: 25, 5: 60}, {1: 30, 3: 10}, [12, 70])
    return tmp_path / "set"


def test_training_engines_fail_before_the_month_in_which_the_test_engines_run(folder):
    plant = as_plant(read_set(folder, "FD009"))
    machines = pl.from_arrow(plant.tables["machines"])
    failures = pl.from_arrow(plant.tables["failures"])
    ends = dict(failures.select("machine_id", "failed_at").iter_rows())
    assert machines["machine_id"].to_list() == [
        "train-001", "train-002", "train-005", "test-001", "test-003"
    ]  # fmt: skip
    assert ends["train-005"] == datetime(2008, 1, 1) + timedelta(hours=60)
    february = datetime(2008, 2, 1)
    assert max(at for machine, at in ends.items() if machine.startswith("train")) < february
    # The longest test engine starts with the month, and all are last read in the same hour.
    starts = dict(machines.select("machine_id", "commissioned_at").iter_rows())
    assert starts["test-001"] == february
    assert starts["test-003"] == february + timedelta(hours=20)
    last = february + timedelta(hours=30)
    assert ends["test-001"] == last + timedelta(hours=12)
    assert ends["test-003"] == last + timedelta(hours=70)


def test_every_cycle_is_an_hour_and_every_column_a_sensor(folder):
    fleets = read_set(folder, "FD009")
    readings = pl.from_arrow(as_plant(fleets).readings).with_columns(
        pl.col(pl.Categorical).cast(pl.String)
    )
    assert len(readings) == (40 + 25 + 60 + 30 + 10) * 24
    assert readings["read_at"].is_sorted()
    assert set(readings["sensor"]) == set(SENSORS)
    one = readings.filter(pl.col("machine_id") == "train-002").pivot(
        "sensor", index="read_at", values="value"
    )
    rows = fleets.train[fleets.train[:, 0] == 2]
    assert np.array_equal(one.select(SENSORS).to_numpy(), rows[:, 2:])
    assert one["read_at"].to_list() == [
        datetime(2008, 1, 1) + timedelta(hours=cycle - 0.5) for cycle in rows[:, 1]
    ]


def test_a_fleet_that_flies_longer_than_a_month_moves_the_test_fleet(tmp_path):
    write_set(tmp_path / "set", {1: 800, 2: 30}, {1: 700}, [5])
    machines = pl.from_arrow(as_plant(read_set(tmp_path / "set", "FD009")).tables["machines"])
    # January has 744 hours, and February of 2008 too few for the test fleet.
    assert machines["commissioned_at"][-1] == datetime(2008, 3, 1)


def test_a_second_fill_adds_nothing_and_another_set_does_not_mix_with_it(folder, tmp_path):
    database, stream = tmp_path / "own" / "plant.sqlite", tmp_path / "own" / "stream"
    assert fill(folder, "FD009", database, stream)["failures"] == 5
    assert fill(folder, "FD009", database, stream) == {"readings": 0, "machines": 0, "failures": 0}
    write_set(folder, {1: 40}, {1: 30}, [12])
    with pytest.raises(MendableError, match="FD009"):
        fill(folder, "FD009", database, stream)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("RUL_FD009.txt", None, "no such file"),
        ("RUL_FD009.txt", "1\n", "2 lines"),
        ("RUL_FD009.txt", "", "a number per line"),
        ("train_FD009.txt", "1 1 2.0\n", "lines of 26 numbers"),
        ("train_FD009.txt", "engine one\n", "lines of 26 numbers"),
        ("train_FD009.txt", "0 1" + " 1" * 24 + "\n", "units and cycles from 1"),
        ("test_FD009.txt", "1 1" + " nan" * 24 + "\n", "lines of 26 numbers"),
    ],
)
def test_a_file_that_is_none_of_a_sets_is_named(folder, file, content, told):
    place = folder / file
    if content is None:
        place.unlink()
    else:
        place.write_text(content)
    with pytest.raises(MendableError, match=file.partition(".")[0]) as caught:
        read_set(folder, "FD009")
    assert told in str(caught.value)
