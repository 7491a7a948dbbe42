"""NASA's C-MAPSS engines through predictive maintenance, in a warehouse of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.integration.small_house import BIN, House

SIX_CONDITIONS = [
    (0, 0.0, 100), (10, 0.25, 100), (20, 0.7, 100), (25, 0.62, 60), (35, 0.84, 100), (42, 0.84, 100)
]  # fmt: skip


def write_turbofan(folder: Path) -> None:
    """A set like the kept ones: six flight conditions, which change each cycle, and two faults."""
    import numpy as np

    random = np.random.default_rng(11)
    base, spread = random.uniform(10, 600, (6, 21)), random.uniform(0.01, 2, 21)
    faults = random.normal(0, 5, (2, 21))
    faults[:, [0, 4, 9]] = 0.0  # three sensors see nothing
    folder.mkdir()
    remaining = []
    for fleet, engines in (("train", 20), ("test", 8)):
        lines = []
        for unit in range(1, engines + 1):
            life, fault = int(random.integers(90, 180)), unit % 2
            seen = life if fleet == "train" else int(life * random.uniform(0.4, 0.9))
            if fleet == "test":
                remaining.append(life - seen)
            for cycle in range(1, seen + 1):
                condition = int(random.integers(6))
                wear = max(0.0, cycle / life - 0.4) ** 2
                sensors = base[condition] + spread * (
                    random.normal(0, 1, 21) + 4 * wear * faults[fault]
                )
                sensors[4] = base[condition][4]  # does not vary at all
                flown = np.array(SIX_CONDITIONS[condition]) + random.normal(0, 0.001, 3)
                lines.append(f"{unit} {cycle} {' '.join(f'{v:.4f}' for v in (*flown, *sensors))}  ")
        (folder / f"{fleet}_FD009.txt").write_text("\n".join(lines))
    (folder / "RUL_FD009.txt").write_text("\n".join(map(str, remaining)))


def of_table(output: str, row: str) -> list[str]:
    """The figures of one row of the table that `watershed turbofan` ends with."""
    (line,) = (line for line in output.splitlines() if re.match(rf"{row}\s", line))
    return line.removeprefix(row).split()


def test_a_turbofan_set_of_six_conditions_and_two_faults_runs_through(tmp_path):
    write_turbofan(tmp_path / "set")
    done = House(tmp_path).run(
        BIN / "watershed", "turbofan", tmp_path / "set", "--set", "FD009",
        WATERSHED_DATA_DIR=str(tmp_path / "data"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lightgbm, naive = (float(of_table(done.stdout, row)[0]) for row in ("lightgbm", "mean life"))
    assert lightgbm < naive
    assert (tmp_path / "data" / "turbofan_FD009" / "catalog.sqlite").exists()


def test_a_turbofan_set_that_is_not_there_is_told(tmp_path):
    done = House(tmp_path).run(
        BIN / "watershed", "turbofan", tmp_path, WATERSHED_DATA_DIR=str(tmp_path / "data")
    )
    assert done.returncode == 1
    assert "train_FD001" in done.stderr
    assert "Traceback" not in done.stderr


def test_fd001_reaches_an_rmse_of_15_cycles_by_the_standard_protocol(tmp_path):
    data = os.environ.get("WATERSHED_TEST_DATA")
    folder = Path(data or "") / "turbofan"
    if not data or not (folder / "train_FD001.txt.gz").exists():
        pytest.skip("WATERSHED_TEST_DATA names no folder with turbofan/train_FD001.txt.gz")
    done = House(tmp_path).run(
        BIN / "watershed", "turbofan", folder, WATERSHED_DATA_DIR=str(tmp_path / "data")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(of_table(done.stdout, "lightgbm")[0]) <= 15
