"""Pictures of customer segmentation as PNG bytes: the month's segments, and who moved."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from io import BytesIO

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from orchestration.learning.customer_segmentation import SegmentationModel, percent, points

INK, FAINT = "#22303c", "#8a97a3"
PALETTE = (
    "#a3a847", "#b8325c", "#dba126", "#7b54a8", "#4fa3b5", "#d1603d",
    "#7fb08f", "#8c6d4f", "#3f9c5a", "#5b6c7d", "#d8a7a0", "#e0679b", "#2e6f9e",
)  # fmt: skip
"""One colour per archetype, by name; then the segments that are named after their traits."""
DIVERGING = LinearSegmentedColormap.from_list("below_above", ["#3a6ea5", "#f6f5f2", "#c8573c"])
STRONGEST = 2.0
"""Standard deviations at which the heat map's colour is full."""
NEW = "New customers"
LABEL_PAD = 0.2
"""White around a label, in font sizes."""
SMALLEST_MOVE = 0.005
"""Share of households below which a move is not drawn."""


def draw_segments(
    model: SegmentationModel, frame: pl.DataFrame, segments: pl.DataFrame, archetypes: pl.DataFrame
) -> bytes:
    """One month's segments: how each differs from the average household, and a map of households.

    Args:
        model: the month's model.
        frame: the training set it describes.
        segments: `predict(model, frame)`.
        archetypes: the table of names, for the colours.
    """
    frame = frame.sort("household_id")
    segments = segments.sort("household_id")
    colours = _colours(archetypes, model.segment_names)
    member_of = segments["segment_id"].to_numpy() - 1
    share = np.bincount(member_of, minlength=len(model.centroids)) / max(len(member_of), 1)
    sales = frame["sales_usd_sum_90d"].cast(pl.Float64).to_numpy()
    of_sales = np.bincount(member_of, sales, minlength=len(model.centroids)) / (sales.sum() or 1)
    dense = int(np.argmax(of_sales / np.maximum(share, 0.01)))

    figure = Figure(figsize=(12, 5.6), dpi=100, facecolor="white")
    profile = figure.add_axes((0.19, 0.07, 0.405, 0.64))
    households = figure.add_axes((0.625, 0.03, 0.365, 0.79))
    _title(
        figure,
        f"{model.segment_names[dense]}: {percent(share[dense])} of households,"
        f" {percent(of_sales[dense])} of sales",
        f"{len(member_of):,} households at the end of {_month(model.as_of_at)}. Left: segments"
        " against the average household, in standard deviations. Right: households by likeness.",
    )
    _heat_map(profile, model, share, of_sales, colours)
    _household_map(households, points(model, frame), member_of, model.segment_names, colours)
    return _png(figure)


def draw_migration(
    previous: pl.DataFrame, segments: pl.DataFrame, archetypes: pl.DataFrame
) -> bytes:
    """How households moved from the previous month's segments (left) to this month's (right).

    Args:
        previous: the previous month's segments, `contracts.customer_segmentation.SEGMENTS`.
        segments: this month's. Moves of fewer than `SMALLEST_MOVE` of them are not drawn.
        archetypes: the table of names, for the colours.
    """
    before = previous.select("household_id", origin="segment_name")
    moves = segments.join(before, on="household_id", how="left").with_columns(
        pl.col("origin").fill_null(NEW)
    )
    by_spend = (
        pl.concat([segments, previous]).group_by("segment_name").agg(pl.col("segment_id").mean())
    )
    order = [*by_spend.sort("segment_id", "segment_name")["segment_name"], NEW]
    colours = {**_colours(archetypes, order), NEW: "#c9d0d6"}
    here = [name for name in order if name in set(moves["segment_name"])]
    there = [name for name in order if name in set(moves["origin"])]
    counts = {
        (origin, name): households
        for origin, name, households in moves.group_by("origin", "segment_name").len().iter_rows()
    }
    stayed = sum(households for (origin, name), households in counts.items() if origin == name)
    both = max(sum(households for (origin, _), households in counts.items() if origin != NEW), 1)
    moved = {pair: n for pair, n in counts.items() if pair[0] != pair[1] and pair[0] != NEW}

    figure = Figure(figsize=(12, 5.6), dpi=100, facecolor="white")
    axes = figure.add_axes((0.22, 0.03, 0.56, 0.78))
    axes.set_axis_off()
    last_month, month = (_month(group["as_of_at"][0]) for group in (previous, segments))
    detail = f"{segments.height:,} households, from the end of {last_month} to the end of {month}."
    if moved:
        (origin, name), households = max(moved.items(), key=lambda item: (item[1], item[0]))
        detail += f" The largest move: {households} households, from {origin} to {name}."
    _title(figure, f"{percent(stayed / both)} of households stayed in their segment", detail)

    gap = 0.02 * segments.height
    tops = [_stack(names, counts, side, gap) for side, names in ((0, there), (1, here))]
    for side, names in ((0, there), (1, here)):
        for name in names:
            size = sum(n for pair, n in counts.items() if pair[side] == name)
            y = tops[side][name]
            x, align = ((0.0, "right"), (1.0, "left"))[side]
            axes.add_patch(Rectangle((x - 0.012, y), 0.024, size, color=colours[name], lw=0))
            label = f"{name}  {percent(size / segments.height)}"
            outside = x + (-0.022, 0.022)[side]
            axes.text(
                outside, y + size / 2, label, ha=align, va="center", color=INK,
                fontsize=_font_size(label, 10.5, 28),
            )  # fmt: skip
    leaving, arriving = dict(tops[0]), dict(tops[1])
    for origin in there:
        for name in here:
            households = counts.get((origin, name), 0)
            if households:
                colour = colours[origin]
                strength = 0.32 if origin == name else 0.55
                if households >= SMALLEST_MOVE * segments.height:
                    _ribbon(axes, leaving[origin], arriving[name], households, colour, strength)
                leaving[origin] += households
                arriving[name] += households
    axes.set_xlim(-0.012, 1.012)
    axes.set_ylim(segments.height + gap * max(len(here), len(there)), -gap)
    return _png(figure)


def _colours(archetypes: pl.DataFrame, segment_names: Iterable[str]) -> dict[str, str]:
    known = sorted(archetypes["segment_name"])
    names = [*known, *sorted(set(segment_names) - set(known))]
    return {name: PALETTE[position % len(PALETTE)] for position, name in enumerate(names)}


def _font_size(text: str, largest: float, characters: int) -> float:
    """The font size at which `text` takes the room of `characters` at the largest size."""
    return largest * min(1.0, characters / max(len(text), 1))


def _title(figure: Figure, finding: str, detail: str) -> None:
    figure.text(0.015, 0.935, finding, fontsize=16, fontweight="bold", color=INK)
    figure.text(0.015, 0.882, detail, fontsize=_font_size(detail, 10, 150), color=FAINT)


def _heat_map(
    axes: Axes,
    model: SegmentationModel,
    share: NDArray[np.float64],
    of_sales: NDArray[np.float64],
    colours: dict[str, str],
) -> None:
    profiles = np.array(model.centroids)
    axes.imshow(profiles, cmap=DIVERGING, vmin=-STRONGEST, vmax=STRONGEST, aspect="auto")
    for row, column in zip(*np.nonzero(np.abs(profiles) >= 0.5), strict=True):
        value = profiles[row, column]
        ink = "white" if abs(value) > 0.7 * STRONGEST else INK
        axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=9, color=ink)
    for edge in np.arange(profiles.shape[0] + 1) - 0.5:
        axes.axhline(edge, color="white", lw=3)
    for edge in np.arange(profiles.shape[1] + 1) - 0.5:
        axes.axvline(edge, color="white", lw=1.5)
    traits = [feature.trait.replace("_", " ") for feature in model.features]
    axes.set_xticks(range(len(traits)), traits, rotation=40, ha="left", fontsize=10, color=INK)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, pad=2)
    axes.set_yticks([])
    for row, name in enumerate(model.segment_names):
        axes.text(
            -0.75, row - 0.04, name, ha="right", va="bottom", fontsize=_font_size(name, 10.5, 21),
            fontweight="bold", color=_dark(colours[name]),
        )  # fmt: skip
        size = f"{percent(share[row])} of households, {percent(of_sales[row])} of sales"
        axes.text(-0.75, row + 0.06, size, ha="right", va="top", fontsize=8.5, color=FAINT)
    axes.spines[:].set_visible(False)


def _household_map(
    axes: Axes,
    coordinates: NDArray[np.float64],
    member_of: NDArray[np.int32],
    names: tuple[str, ...],
    colours: dict[str, str],
) -> None:
    """Households on the two directions in which the segments' profiles differ most.

    Those are the first two principal components of the segments' centres, each scaled to length 1,
    so that the most extreme segment does not choose both directions.
    """
    centred = coordinates - coordinates.mean(axis=0)
    present = np.unique(member_of)
    centres = np.array([centred[member_of == segment].mean(axis=0) for segment in present])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-9)
    directions = np.linalg.svd(centres, full_matrices=False)[2][:2]
    directions *= np.where(directions.sum(axis=1, keepdims=True) < 0, -1, 1)
    x, y = (centred @ directions.T @ np.eye(len(directions), 2)).T
    palette = np.array([to_rgb(colours[name]) for name in names])
    axes.scatter(x, y, c=palette[member_of], s=9, alpha=0.5, linewidths=0)

    axes.margins(x=0.12)
    axes.autoscale_view()
    axes.set_axis_off()
    labels = [
        axes.text(
            float(np.median(x[member_of == segment])), float(np.median(y[member_of == segment])),
            names[segment], ha="center", va="center", fontsize=_font_size(names[segment], 10, 24),
            fontweight="bold", color=_dark(colours[names[segment]]),
            bbox={"boxstyle": f"square,pad={LABEL_PAD}", "fc": "white", "ec": "none", "alpha": 0.8},
        )
        for segment in present
    ]  # fmt: skip
    _spread(axes, labels)


def _spread(axes: Axes, labels: list[Text]) -> None:
    """Move labels up, the lowest first, until none covers another."""
    renderer = FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()  # type: ignore[no-untyped-call]
    to_data = axes.transData.inverted()
    placed: list[Bbox] = []
    for label in sorted(labels, key=lambda label: label.get_position()[::-1]):
        pad = 2 * LABEL_PAD * renderer.points_to_pixels(label.get_fontsize())
        box = label.get_window_extent(renderer).padded(pad)
        while covered := [other for other in placed if other.overlaps(box)]:
            box = box.translated(0, max(other.y1 for other in covered) - box.y0 + 1)
        placed.append(box)
        label.set_y(to_data.transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))[1])


def _stack(
    names: list[str], counts: dict[tuple[str, str], int], side: int, gap: float
) -> dict[str, float]:
    """The top of each name's bar, stacked downwards."""
    tops, y = {}, 0.0
    for name in names:
        tops[name] = y
        y += sum(n for pair, n in counts.items() if pair[side] == name) + gap
    return tops


def _ribbon(
    axes: Axes, left: float, right: float, width: int, colour: str, strength: float
) -> None:
    x0, x1, middle = 0.012, 0.988, 0.5
    curve = [Path.CURVE4] * 3
    corners = [
        (x0, left), (middle, left), (middle, right), (x1, right),
        (x1, right + width), (middle, right + width), (middle, left + width), (x0, left + width),
    ]  # fmt: skip
    path = Path(corners, [Path.MOVETO, *curve, Path.LINETO, *curve])
    axes.add_patch(PathPatch(path, fc=colour, ec="none", alpha=strength))


def _dark(colour: str) -> tuple[float, ...]:
    return tuple(0.75 * channel for channel in to_rgb(colour))


def _month(as_of_at: datetime) -> str:
    """The segmented month: the one that ends where `as_of_at` begins."""
    return f"{as_of_at - timedelta(days=1):%B %Y}"


def _png(figure: Figure) -> bytes:
    """The figure with at most 255 colours, which makes it a third of the size."""
    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="rgba")
    size = tuple(round(inches * figure.dpi) for inches in figure.get_size_inches())
    picture = Image.frombytes("RGBA", (size[0], size[1]), drawn.getvalue()).convert("RGB")
    picture.quantize(255, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
