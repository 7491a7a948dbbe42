"""Picture of a week's drift tests as PNG bytes: how far each feature has moved, against how far is no chance."""

from __future__ import annotations

from io import BytesIO

import polars as pl
from matplotlib.figure import Figure

INK, FAINT, DRIFTED, STABLE = "#22303c", "#8a97a3", "#b8325c", "#4fa3b5"
MOST_ROWS = 30


def draw_drift(verdicts: pl.DataFrame) -> bytes | None:
    """The newest week's differences in units of their thresholds, the largest first.

    Args:
        verdicts: a model of `monitoring` that ends with `__drift`.

    Returns:
        The picture; None if nothing could be tested.
    """
    newest = verdicts.filter(pl.col("as_of_at") == pl.col("as_of_at").max())
    tested = (
        newest.filter(pl.col("threshold") > 0)
        .with_columns(share=pl.col("difference") / pl.col("threshold"))
        .sort(pl.col("share").abs(), "subject", "feature", "statistic", descending=True)
    )
    if tested.is_empty():
        return None
    finding, detail = summary(newest)
    shown = tested.head(MOST_ROWS).reverse()
    figure = Figure(figsize=(9, 1.6 + 0.24 * shown.height), dpi=80, facecolor="white")
    height = figure.get_figheight()
    axes = figure.add_axes((0.42, 0.55 / height, 0.55, 1 - 1.45 / height))
    figure.text(0.02, 1 - 0.4 / height, finding, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.02, 1 - 0.68 / height, detail, fontsize=9.5, color=FAINT)
    colours = [DRIFTED if drifted else STABLE for drifted in shown["is_drifted"]]
    axes.hlines(range(shown.height), 0, shown["share"].to_list(), colors=colours, lw=2)
    axes.scatter(shown["share"].to_list(), range(shown.height), c=colours, s=24, zorder=3)
    axes.axvline(0, color=FAINT, lw=0.8)
    for limit in (-1, 1):
        axes.axvline(limit, color=INK, lw=1, ls="--")
    names = [
        f"{subject} {feature}, {statistic}".strip()
        for subject, feature, statistic in shown.select("subject", "feature", "statistic").rows()
    ]
    axes.set_yticks(range(shown.height), names, fontsize=8.5)
    axes.set_ylim(-0.6, shown.height - 0.4)
    widest = max(1.25, 1.1 * float(shown["share"].abs().max()))  # type: ignore[arg-type]
    axes.set(xlim=(-widest, widest), xlabel="difference as a share of what may still be chance")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def summary(newest: pl.DataFrame) -> tuple[str, str]:
    """What a week's tests found, in words, and what they were."""
    count = dict(newest["verdict"].value_counts().iter_rows())
    drifted = count.get("drifted", 0)
    finding = (
        f"{drifted} of {newest.height} tests have drifted" if drifted else "Nothing has drifted"
    )
    days = newest.select(pl.col("current_days", "reference_days").max()).row(0)
    as_of = newest.select(pl.col("as_of_at").max().dt.strftime("%Y-%m-%d")).item()
    return finding, (
        f"As of {as_of}, {days[0]} days against {days[1]} before:"
        f" {count.get('stable', 0)} stable, {count.get('not_enough_data', 0)} without enough data"
    )
