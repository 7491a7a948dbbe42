"""Pictures of predictive maintenance as PNG bytes, and a table to read: a machine, the fleet, the models."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

INK, FAINT = "#22303c", "#8a97a3"
COLOURS = {"lightgbm": "#b8325c", "baseline": "#4fa3b5"}
NAMES = {"lightgbm": "LightGBM", "baseline": "linear baseline"}
WARNING, FAILURE = "#e8a33d", "#b8325c"
MOST_SENSORS = 6
"""A machine's picture shows the sensors that went furthest."""
MOST_MACHINES = 60


def draw_machine(
    health: pl.DataFrame,
    distances: pl.DataFrame,
    warnings: pl.DataFrame,
    failures: list[datetime],
) -> bytes:
    """One machine over time: its sensors' distances, its probability and remaining life, what happened.

    Args:
        health: machine_id, as_of_at, failure_probability, remaining_hours and its `_low` and `_high`,
            of one machine, at least one row.
        distances: as_of_at, sensor, deviation_distance_24h of that machine.
        warnings: opened_at and closed_at (null while open) of that machine.
        failures: when it failed.
    """
    health = health.sort("as_of_at")
    at = health["as_of_at"].to_list()
    machine = health["machine_id"][0]
    figure = Figure(figsize=(10, 7.5), dpi=100, facecolor="white")
    _head(
        figure,
        f"Machine {machine}: warnings {warnings.height}, failures {len(failures)}",
        f"{at[0]:%Y-%m-%d} to {at[-1]:%Y-%m-%d}; amber: a warning is open, red: it failed",
    )
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.8, top=0.86, bottom=0.07, hspace=0.14)
    for sensor, rows in _furthest(distances):
        values = rows["deviation_distance_24h"].cast(pl.Float64).to_numpy()
        top.plot(rows["as_of_at"].to_list(), values, lw=1.2, label=sensor)
    top.axhline(0, color=FAINT, lw=0.8)
    top.set_ylabel("sensor's distance from its\nbaseline, standard deviations")
    middle.plot(at, health["failure_probability"].to_list(), color=INK, lw=1.3)
    middle.set(ylabel="failure probability", ylim=(0, 1.02))
    remaining = health.select(
        pl.col("^remaining_hours.*$").cast(pl.Float64).fill_null(np.nan)
    ).to_dict()
    low, high = (remaining[f"remaining_hours_{end}"].to_numpy() for end in ("low", "high"))
    bottom.fill_between(at, low, high, color=COLOURS["baseline"], alpha=0.3, lw=0, label="80 %")
    bottom.plot(at, remaining["remaining_hours"].to_numpy(), color=COLOURS["baseline"], lw=1.3)
    bottom.set_ylabel("remaining life, hours")
    bottom.set_ylim(bottom=0)
    for axes in (top, middle, bottom):
        for opened_at, closed_at in warnings.select("opened_at", "closed_at").iter_rows():
            axes.axvspan(opened_at, closed_at or at[-1], color=WARNING, alpha=0.25, lw=0)
        for failed_at in failures:
            axes.axvline(failed_at, color=FAILURE, lw=1.4)
        axes.spines[["top", "right"]].set_visible(False)
    if distances.height:
        top.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _dates(bottom)
    return _png(figure)


def draw_fleet(health: pl.DataFrame, warnings: pl.DataFrame, failures: pl.DataFrame) -> bytes:
    """The fleet at a glance: each machine's highest failure probability of each day.

    Args:
        health: machine_id, as_of_at, failure_probability; at least one row.
        warnings: machine_id, opened_at.
        failures: machine_id, failed_at.
    """
    day = pl.col("as_of_at").dt.date()
    daily = health.group_by("machine_id", day=day).agg(pl.col("failure_probability").max())
    worst = (
        daily.group_by("machine_id")
        .agg(pl.col("failure_probability").max())
        .sort("failure_probability", "machine_id", descending=[True, False])
        .head(MOST_MACHINES)["machine_id"]
    )
    machines = worst.sort().to_list()
    first, last = daily.select(pl.col("day").min(), pl.col("day").max().alias("last")).row(0)
    days = (last - first).days + 1
    grid = np.full((len(machines), days), np.nan)
    row_of = {machine: row for row, machine in enumerate(machines)}
    for machine, date, probability in daily.select(
        "machine_id", "day", "failure_probability"
    ).iter_rows():
        if machine in row_of:
            grid[row_of[machine], (date - first).days] = probability
    height = 2.2 + 0.17 * len(machines)
    figure = Figure(figsize=(10, height), dpi=100, facecolor="white")
    axes = figure.add_axes((0.14, 0.6 / height, 0.78, (height - 1.8) / height))
    shown = f", the {len(machines)} with the highest" if len(machines) == MOST_MACHINES else ""
    _head(
        figure,
        f"{health['machine_id'].n_unique()} machines: {warnings.height} warnings,"
        f" {failures.height} failures",
        f"highest failure probability of each day, {first} to {last}{shown}",
    )
    start = datetime.combine(first, datetime.min.time())
    image = axes.imshow(
        grid, aspect="auto", cmap="YlOrRd", vmin=0, vmax=1, interpolation="nearest",
        extent=(0, days, len(machines), 0),
    )  # fmt: skip
    for events, column, marker, colour, name in (
        (warnings, "opened_at", "v", INK, "warning opens"),
        (failures, "failed_at", "x", "#1f4fd8", "failure"),
    ):
        seen = events.filter(pl.col("machine_id").is_in(machines))
        x = [(at - start).total_seconds() / 86_400 for at in seen[column]]
        y = [row_of[machine] + 0.5 for machine in seen["machine_id"]]
        axes.scatter(x, y, marker=marker, s=28, color=colour, label=name, zorder=3)
    axes.set(xlim=(0, days), xlabel=f"days since {first}", ylim=(len(machines), 0))
    axes.set_yticks(np.arange(len(machines)) + 0.5, machines, fontsize=7.5)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    return _png(figure)


def draw_calibration(backtest: pl.DataFrame) -> bytes:
    """How often machines failed within the horizon, against how likely that was said to be.

    Args:
        backtest: `contracts.predictive_maintenance.BACKTEST` with at least one label.
    """
    known = backtest.filter(pl.col("label").is_not_null())
    figure, axes = _page(
        "When the models say 30 %, how often does it fail?", f"{known.height:,} scored hours"
    )
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--")
    for algorithm, rows in _by_algorithm(known):
        bins = (
            rows.group_by(bin=(pl.col("failure_probability") * 10).floor().clip(0, 9))
            .agg(pl.col("failure_probability").mean(), pl.col("label").mean(), hours=pl.len())
            .sort("bin")
        )
        axes.plot(bins["failure_probability"], bins["label"], color=COLOURS[algorithm], lw=1.5)
        axes.scatter(
            bins["failure_probability"], bins["label"], color=COLOURS[algorithm],
            s=12 + 30 * np.log10(bins["hours"].to_numpy()), label=NAMES[algorithm],
        )  # fmt: skip
    axes.set(xlabel="failure probability", ylabel="share that failed within the horizon")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    return _png(figure)


def draw_remaining_life(backtest: pl.DataFrame) -> bytes:
    """Predicted against true remaining life with the 80 % interval, by the champions.

    Args:
        backtest: `contracts.predictive_maintenance.BACKTEST`; hours of machines that were seen to fail
            are drawn, at most about 3,000 of them.
    """
    rows = backtest.filter(pl.col("is_champion") & ~pl.col("is_censored")).sort(
        "machine_id", "as_of_at"
    )
    rows = rows.gather_every(max(1, rows.height // 3000))
    cap = float(rows["remaining_hours_high"].cast(pl.Float64).to_numpy().max(initial=1.0))
    truth = rows["observed_remaining_hours"].to_numpy()
    low, predicted, high = (
        rows[name].to_numpy()
        for name in ("remaining_hours_low", "remaining_hours", "remaining_hours_high")
    )
    held = np.minimum(truth, cap)
    inside = ((low <= held + 1e-9) & (held <= high + 1e-9)).mean() if len(held) else float("nan")
    figure, axes = _page(
        f"The 80 % interval holds {inside:.0%} of the hours before a failure",
        f"{rows.height:,} hours of machines that failed; predictions end at {cap:.0f} h",
    )
    axes.vlines(truth, low, high, color=COLOURS["lightgbm"], alpha=0.06, lw=2)
    axes.scatter(truth, predicted, s=5, color=COLOURS["lightgbm"], lw=0)
    axes.plot([0, cap], [0, cap], color=INK, lw=1, ls="--")
    axes.set(xlabel="true remaining life, hours", ylabel="predicted, hours")
    axes.set(xlim=(max(2 * cap, 1), 0), ylim=(0, cap * 1.02))
    return _png(figure)


def models_table(models: pl.DataFrame) -> str:
    """Every month's models and what simpler baselines get, as a Markdown table.

    Args:
        models: rows of `trained_models.predictive_maintenance`.
    """
    head = (
        "| as of | machine model | algorithm | failures learned from | RMSE at last hours | by mean life"
        " | RMSE of all hours | 80 % interval holds | average precision | calibration error | warns from |"
    )
    lines = [head, "|---" * 11 + "|"]
    for as_of_at, machine_model, algorithm, champion, failures, *figures in models.select(
        "as_of_at",
        "machine_model",
        "algorithm",
        "is_champion",
        "training_failures",
        "remaining_hours_rmse",
        "mean_life_rmse",
        "remaining_hours_rmse_all",
        "interval_coverage",
        "average_precision",
        "calibration_error",
        "warning_threshold",
    ).iter_rows():
        name = NAMES[algorithm] + (" (champion)" if champion else "")
        cells = ["" if value is None else f"{value:,.3g}" for value in figures]
        lines.append(
            f"| {as_of_at:%Y-%m-%d} | {machine_model} | {name} | {failures} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _furthest(distances: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    furthest = (
        distances.group_by("sensor")
        .agg(furthest=pl.col("deviation_distance_24h").abs().max())
        .drop_nulls()
        .sort("furthest", "sensor", descending=[True, False])
        .head(MOST_SENSORS)["sensor"]
    )
    return [(s, distances.filter(pl.col("sensor") == s).sort("as_of_at")) for s in furthest]


def _by_algorithm(backtest: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    parts = [(name, backtest.filter(pl.col("algorithm") == name)) for name in COLOURS]
    return [(name, rows) for name, rows in parts if rows.height]


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _head(figure: Figure, finding: str, detail: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.35 / height, finding, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.02, 1 - 0.6 / height, detail, fontsize=9.5, color=FAINT)


def _page(finding: str, detail: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), dpi=100, facecolor="white")
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.7))
    _head(figure, finding, detail)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
