"""The path that data travels, in order, once. Data only ever flows to the right."""

from __future__ import annotations

LAYERS = (
    "sources",
    "raw",
    "landing",
    "seeds",
    "staging",
    "intermediate",
    "features",
    "training_sets",
    "trained_models",
    "predictions",
    "monitoring",
)
"""Names of the layers, left to right. A layer's name is its schema in the warehouse and the first
part of every asset key that stands in it. `landing` is
what landing wrote down about its batches; `seeds` are facts people edit, which enter beside `raw`."""

USE_CASES = ("customer_segmentation", "fraud_detection", "predictive_maintenance")
"""The use cases: the constant stem in file names, and the group of every asset in the graph."""
