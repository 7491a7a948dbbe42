"""Pictures of fraud detection as PNG bytes, and tables to read: how well models do, how the stream does."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, FAINT = "#22303c", "#8a97a3"
COLOURS = {"lightgbm": "#b8325c", "logistic_regression": "#4fa3b5"}
NAMES = {"lightgbm": "LightGBM", "logistic_regression": "logistic regression"}
MOST_CARDS = 300
"""The number of investigated cards a day at which the saved-money curve ends."""


def draw_precision_recall(backtest: pl.DataFrame) -> bytes:
    """Precision against recall of one test week, a line per algorithm.

    Args:
        backtest: `contracts.fraud_detection.BACKTEST`, one week with both kinds of payments.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = _page("Precision and recall", _week_of(backtest))
    for algorithm, rows in _by_algorithm(backtest):
        label, score = rows["label"].to_numpy(), rows["score"].to_numpy()
        precision, recall, _ = precision_recall_curve(label, score)
        average = average_precision_score(label, score)
        axes.step(
            recall, precision, where="post", lw=2, color=COLOURS[algorithm],
            label=f"{NAMES[algorithm]}: average precision {average:.3f}",
        )  # fmt: skip
    axes.set(xlabel="recall: share of fraudulent payments found", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("precision: share of alerts that are fraud")
    axes.legend(frameon=False)
    return _png(figure)


def draw_saved_money(backtest: pl.DataFrame, cards_per_day: int) -> bytes:
    """Money saved a day against cards investigated a day, in one test week, a line per algorithm.

    Args:
        backtest: `contracts.fraud_detection.BACKTEST`, one week.
        cards_per_day: cards that the investigators can look at.
    """
    figure, axes = _page("Money saved by investigating cards", _week_of(backtest))
    for algorithm, rows in _by_algorithm(backtest):
        saved, total = saved_by_cards(rows)
        at_capacity = saved[min(cards_per_day, len(saved) - 1)]
        share = at_capacity / total if total else 0.0
        axes.plot(
            saved, lw=2, color=COLOURS[algorithm],
            label=f"{NAMES[algorithm]}: {at_capacity:,.0f} a day at capacity, {share:.0%} of the fraud",
        )  # fmt: skip
    axes.axvline(cards_per_day, color=FAINT, lw=1, ls="--")
    axes.set(xlabel="cards investigated a day", xlim=(0, MOST_CARDS), ylabel="money saved a day")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    return _png(figure)


def saved_by_cards(rows: pl.DataFrame, most: int = MOST_CARDS) -> tuple[NDArray[np.float64], float]:
    """Money saved a day by investigating the 0, 1, ... `most` highest cards, and all there was to save.

    A card saves the amounts of its fraudulent payments of that day; the mean over days.
    """
    day = pl.col("transaction_at").dt.date()
    cards = (
        rows.group_by(day=day, card="customer_id")
        .agg(
            pl.col("score").max(),
            lost=pl.col("amount").cast(pl.Float64).filter(pl.col("label")).sum(),
        )
        .sort("day", "score", "card", descending=[False, True, False])
        .with_columns(place=pl.int_range(1, pl.len() + 1).over("day"))
    )
    days = max(cards["day"].n_unique(), 1)
    seen = cards.filter(pl.col("place") <= most)
    per_place = np.bincount(seen["place"].to_numpy(), seen["lost"].to_numpy(), minlength=most + 1)
    return per_place.cumsum() / days, float(cards["lost"].sum()) / days


def draw_latency(scores: pl.DataFrame) -> bytes:
    """How long payments waited for their score: a histogram on a logarithmic axis.

    Args:
        scores: rows of `predictions.payment_scores` with `latency_ms` and `is_alert`; at least one.
    """
    latency = scores["latency_ms"].cast(pl.Float64).drop_nulls().to_numpy().clip(0.01)
    p50, p99 = np.quantile(latency, [0.5, 0.99])
    alerts = int(scores["is_alert"].sum())
    figure, axes = _page(
        f"Half of the payments were scored within {p50:.1f} ms, 99 % within {p99:.1f} ms",
        f"{len(latency):,} payments, {alerts:,} alerts: event received to score published",
    )
    edges = np.geomspace(latency.min() * 0.9, latency.max() * 1.1, 60)
    axes.hist(latency, bins=edges.tolist(), color=COLOURS["lightgbm"])
    for value, name in ((p50, "p50"), (p99, "p99")):
        axes.axvline(float(value), color=INK, lw=1, ls="--")
        axes.text(float(value), axes.get_ylim()[1], f" {name}", va="top", color=INK)
    axes.set(xscale="log", xlabel="milliseconds", ylabel="payments")
    return _png(figure)


def parity_table(parity: pl.DataFrame) -> str:
    """How often each online feature differs from the SQL one, as a Markdown table.

    Args:
        parity: `monitoring.mon_fraud_detection__parity`, a row per day.
    """
    suffix = "_mismatches_count"
    compared = int(parity["payments_scored_count"].sum())
    lines = [
        f"| {name.removesuffix(suffix)} | {compared:,} | {int(parity[name].sum()):,} |"
        for name in parity.columns
        if name.endswith(suffix)
    ]
    return "\n".join(["| feature | payments compared | mismatches |", "|---|---|---|", *lines])


def _by_algorithm(backtest: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    parts = [(name, backtest.filter(pl.col("algorithm") == name)) for name in COLOURS]
    return [(name, rows) for name, rows in parts if rows.height]


def _week_of(backtest: pl.DataFrame) -> str:
    day = pl.col("transaction_at").dt.date()
    first, last = backtest.select(day.min(), day.max().alias("last")).row(0)
    return f"Test week {first} to {last}, without cards already known to be compromised"


def _page(finding: str, detail: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), dpi=100, facecolor="white")
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.7))
    figure.text(0.02, 0.93, finding, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.02, 0.88, detail, fontsize=9.5, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
