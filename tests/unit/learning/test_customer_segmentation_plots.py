"""Pictures of customer segmentation: small PNGs that state a finding."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from orchestration.learning import customer_segmentation_plots as plots
from orchestration.learning.customer_segmentation import fit, predict
from tests.unit.learning.customers import FEBRUARY, KINDS, archetypes, customers

FITTED = fit(customers(), archetypes())
SEGMENTS = predict(FITTED.model, customers())
NEXT = predict(fit(customers(FEBRUARY, seed=7), archetypes(), SEGMENTS).model, customers(FEBRUARY))


@pytest.fixture
def titles(monkeypatch):
    told = []
    draw = plots._title

    def listen(figure, finding, detail):
        told.append((finding, detail))
        draw(figure, finding, detail)

    monkeypatch.setattr(plots, "_title", listen)
    return told


def size_of(png: bytes) -> tuple[int, int]:
    assert len(png) < 120_000
    return Image.open(BytesIO(png)).size


def test_segments_are_drawn_with_the_finding_as_title(titles):
    png = plots.draw_segments(FITTED.model, customers(), SEGMENTS, archetypes())
    assert size_of(png) == (1200, 560)
    assert titles[0][0].startswith("Champions: 17% of households, ")
    assert "at the end of January 2017" in titles[0][1]


def test_the_order_of_rows_does_not_change_the_picture():
    shuffled = customers().sample(fraction=1, shuffle=True, seed=3)
    args = (FITTED.model, customers(), SEGMENTS, archetypes())
    assert plots.draw_segments(*args) == plots.draw_segments(
        FITTED.model, shuffled, SEGMENTS.reverse(), archetypes().reverse()
    )


def test_no_segments_label_covers_another():
    for seed in range(5):
        figure = Figure(figsize=(4.4, 4.4), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        rng = np.random.default_rng(seed)
        member_of = np.arange(60) % 6
        spots = rng.normal(0, 0.3, (60, 3)) + np.eye(3)[member_of % 3]
        names = tuple(KINDS)
        plots._household_map(axes, spots, member_of, names, dict.fromkeys(names, "#123456"))
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        labels = [text.get_bbox_patch().get_window_extent(renderer) for text in axes.texts]
        assert len(labels) == 6
        for one, other in combinations(labels, 2):
            assert not one.overlaps(other)


def test_migration_says_how_many_stayed_and_counts_new_customers(titles):
    known = SEGMENTS.filter(SEGMENTS["household_id"] > 20)
    assert size_of(plots.draw_migration(known, NEXT, archetypes())) == (1200, 560)
    assert titles[0][0] == "100% of households stayed in their segment"


def test_migration_names_the_largest_move(titles):
    moved = SEGMENTS.with_columns(
        SEGMENTS["segment_name"].replace({"Champions": "Fresh-food lovers"})
    )
    plots.draw_migration(moved, NEXT, archetypes())
    assert titles[0][1].endswith("40 households, from Fresh-food lovers to Champions.")


def test_names_beyond_the_archetypes_can_be_drawn():
    fitted = fit(customers(), archetypes().head(1))
    segments = predict(fitted.model, customers())
    assert size_of(plots.draw_segments(fitted.model, customers(), segments, archetypes().head(1)))
    assert size_of(plots.draw_migration(SEGMENTS, segments, archetypes().head(1)))


def test_a_segment_has_the_same_colour_in_every_month():
    first = plots._colours(archetypes(), ["Champions"])
    second = plots._colours(archetypes().reverse(), ["Champions", "Spend little and shop rarely"])
    assert first["Champions"] == second["Champions"]
