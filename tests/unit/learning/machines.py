"""Machines that wear out, as the long training set: what the tests of predictive maintenance learn from."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache

import numpy as np
import polars as pl

from orchestration.learning.machine_health import MACHINE_FEATURES
from orchestration.learning.warning_states import Policy

START = datetime(2025, 1, 1)
POLICY = Policy(
    horizon_hours=24,
    remaining_cap_hours=60,
    baseline_hours=24,
    reference_machine_hours=60,
    open_after_scores=2,
    close_after_scores=6,
    callout_cost=500.0,
    downtime_cost_per_hour=1000.0,
    unplanned_downtime_hours=16.0,
    planned_downtime_hours=4.0,
)
SENSORS = ("pressure_bar", "temperature_c", "vibration_mm_s")


@cache
def training_frame(
    machines: int = 10, days: int = 40, seed: int = 1, preventive: float = 0.3, model: str = "pump"
) -> pl.DataFrame:
    """`TRAINING_FRAME`: temperature and vibration rise over the last 60 hours of a machine's life.

    Lives last 50 to 150 hours; a share `preventive` of them ends in a repair ahead of the failure.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(machines):
        hour, episode = 0, 0
        while hour < 24 * days:
            life = int(rng.integers(50, 150))
            is_repaired = rng.random() < preventive
            lasted = int(rng.integers(10, life)) if is_repaired else life
            heard = min(lasted, 24 * days - hour)
            ends = heard == lasted
            left = life - np.arange(1, heard + 1)
            wear = np.clip(1 - left / 60, 0, None)
            at = [START + timedelta(hours=hour + n) for n in range(1, heard + 1)]
            until = at[-1]
            failed_at = until if ends and not is_repaired else None
            remaining = (heard - np.arange(1, heard + 1)).astype(float)
            soon = remaining <= POLICY.horizon_hours
            known = (failed_at is not None) | (remaining >= POLICY.horizon_hours)
            for sensor, gain in zip(SENSORS, (0.0, 5.0, 8.0), strict=True):
                distance = gain * wear + rng.normal(0, 0.7, heard)
                parts.append(
                    pl.DataFrame(
                        {
                            "machine_id": f"{model}_{number:02d}",
                            "as_of_at": at,
                            "sensor": sensor,
                            "machine_model": model,
                            "episode_number": episode,
                            "deviation_avg_24h": distance * 2,
                            "deviation_std_24h": np.abs(rng.normal(1, 0.1, heard)),
                            "deviation_slope_24h": gain * (wear > 0) / 60
                            + rng.normal(0, 0.1, heard),
                            "deviation_distance_6h": distance + rng.normal(0, 0.5, heard),
                            "deviation_distance_24h": distance,
                            "hours_since_reading": 0.5,
                            "is_stuck": False,
                            **dict.fromkeys(MACHINE_FEATURES, 0.0),
                            "episode_hours": np.arange(1.0, heard + 1),
                            "failed_at": pl.Series([failed_at] * heard, dtype=pl.Datetime("us")),
                            "observed_until": until,
                            "remaining_hours": remaining,
                            "is_censored": failed_at is None,
                            "label": pl.Series(
                                np.where(known, soon & (failed_at is not None), None).tolist(),
                                dtype=pl.Boolean,
                            ),
                        }
                    )
                )
            hour += heard + 2  # two hours of repair
            episode += 1
    return pl.concat(parts).with_columns(
        pl.col("as_of_at", "observed_until").cast(pl.Datetime("us")),
        pl.col("episode_number").cast(pl.Int64),
    )
