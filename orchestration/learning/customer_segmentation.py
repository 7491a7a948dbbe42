"""Customer segmentation: fit a month's segments, name them, describe them, score households.

Households are grouped by how they buy (never by who they are: demographics only describe a finished
segment). Each feature is made less skewed, standardised over the month's households, and clipped at
+-`LIMIT` standard deviations, so that one outlier does not own a segment; a column without variance
counts for nothing. A null counts as 0: without purchases there is no share and no change, without
mailings no response. Then k-means.

**How many segments:** the number in `CANDIDATES` with the highest mean silhouette (over at most
`SILHOUETTE_ROWS` households), among those whose smallest segment holds at least `MIN_SEGMENT_SHARE`
of the households; if none does, the one whose smallest segment is largest. The previous month's
number stays unless another is better by more than `SILHOUETTE_MARGIN`, so that campaigns do not
lose their groups over noise.

**Names:** a segment that shares enough households with one of the previous month keeps its name
while the name describes it; see `_named`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from orchestration.errors import MendableError
from orchestration.learning.trained import TrainedModel

ALGORITHM = "k-means"
CANDIDATES = (5, 6, 7, 8)
"""Numbers of segments to choose from: fewer are too coarse, more are too many to run."""
HOUSEHOLDS_PER_SEGMENT = 10
"""A month needs this many households for each segment of the smallest candidate."""
MIN_SEGMENT_SHARE = 0.03
SILHOUETTE_ROWS = 2500
SILHOUETTE_MARGIN = 0.02
LIMIT = 3.0
KEEP_NAME_JACCARD = 0.3
"""Households in both segments / households in either: above, they are the same segment."""
MIN_NAME_FIT = 0.4
"""Cosine between a segment's profile and an archetype's weights below which the name is wrong."""
NAME_FIT_MARGIN = 0.1
"""A kept name may fit this much worse than the archetype that would fit best."""
STRONG_TRAIT = 0.5
"""Standard deviations from the average household at which a trait is worth a sentence."""
KNOWN_HOUSEHOLDS = 20
"""Members with known demographics below which nothing is said about them."""
SEED = 20170101

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Feature:
    """A column that segments are made of: the trait it measures, its shape, and how to say it.

    `shape` is the transform before standardising: `log` (log1p, for counts and amounts), `root`
    (square root, for shares that are mostly 0) or `plain`. `figure` is the value of a group of
    households, null where it has none; `number` formats it and `words` says what it is.
    """

    trait: str
    column: str
    shape: str
    high: str
    low: str
    figure: pl.Expr
    number: str
    words: str


def _median(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64).median()


def _change() -> pl.Expr:
    last = pl.col("sales_usd_sum_60d").cast(pl.Float64).sum()
    prior = pl.col("sales_usd_sum_prior_60d").cast(pl.Float64).sum()
    return pl.when(prior > 0).then(last / prior - 1)


FEATURES = (
    Feature(
        "recency", "days_since_last_purchase", "log", "Away for long", "Here recently",
        _median("days_since_last_purchase"), "{:.0f}", "last visit {} days ago",
    ),
    Feature(
        "frequency", "baskets_count_90d", "log", "Shop often", "Shop rarely",
        _median("baskets_count_90d"), "{:.0f}", "{} baskets in 90 days",
    ),
    Feature(
        "monetary", "sales_usd_sum_90d", "log", "Spend much", "Spend little",
        _median("sales_usd_sum_90d"), "${:,.0f}", "{} in 90 days",
    ),
    Feature(
        "basket_size", "basket_usd_avg_90d", "log", "Fill big baskets", "Fill small baskets",
        _median("basket_usd_avg_90d"), "${:,.0f}", "{} a basket",
    ),
    Feature(
        "breadth", "departments_count_90d", "plain",
        "Buy across the store", "Buy in few departments",
        _median("departments_count_90d"), "{:.0f}", "{} departments",
    ),
    Feature(
        "discount", "retail_discount_share_90d", "plain", "Wait for discounts", "Pay full price",
        pl.col("retail_discount_share_90d").mean(), "{:.0%}", "{} off the shelf price",
    ),
    Feature(
        "coupon", "coupon_lines_share_90d", "root", "Love coupons", "Use few coupons",
        pl.col("coupon_lines_share_90d").mean(), "{:.1%}", "{} of lines with a coupon",
    ),
    Feature(
        "campaign", "campaign_response_rate_365d", "root",
        "Answer campaigns", "Leave campaigns unanswered",
        pl.col("campaign_response_rate_365d").mean(), "{:.0%}", "{} of those mailed",
    ),
    Feature(
        "private_label", "private_label_share_90d", "plain",
        "Prefer own brands", "Prefer national brands",
        pl.col("private_label_share_90d").mean(), "{:.0%}", "{} of sales",
    ),
    Feature(
        "fresh", "fresh_share_90d", "plain", "Buy fresh food", "Buy little fresh food",
        pl.col("fresh_share_90d").mean(), "{:.0%}", "{} of sales",
    ),
    Feature(
        "trend", "sales_trend_60d", "plain", "Buy more than before", "Buy less than before",
        _change(), "{:+.0%}", "sales {} on the 60 days before",
    ),
)  # fmt: skip
"""What the segments are made of, in the order of the archetypes' weight columns."""

_PEOPLE = {
    "families with kids": pl.col("kids_count") != "0",
    "homeowners": pl.col("home_ownership") == "Homeowner",
    "married couples": pl.col("marital_status") == "Married",
    "singles living alone": pl.col("household_size") == "1",
}


@dataclass(frozen=True)
class ScaledFeature:
    """How a column becomes a coordinate: shape, minus `mean`, divided by `scale` (0: always 0)."""

    trait: str
    column: str
    shape: str
    mean: float
    scale: float


@dataclass(frozen=True)
class SegmentationModel(TrainedModel):
    """A month's trained model.

    Segment ids count from 1, biggest spenders first. `centroids` has one row per segment and one
    column per feature, in standard deviations from the average household.
    """

    USE_CASE = "customer_segmentation"

    as_of_at: datetime
    features: tuple[ScaledFeature, ...]
    limit: float
    centroids: tuple[tuple[float, ...], ...]
    segment_names: tuple[str, ...]

    def _of(self) -> str:
        return f"{self.as_of_at - timedelta(days=1):%Y-%m}"  # the segmented month

    def _contents(self) -> dict[str, Any]:
        return {**asdict(self), "as_of_at": self.as_of_at.isoformat()}

    @classmethod
    def _parsed(cls, parsed: dict[str, Any]) -> Self:
        return cls(
            as_of_at=datetime.fromisoformat(parsed["as_of_at"]),
            features=tuple(ScaledFeature(**feature) for feature in parsed["features"]),
            limit=float(parsed["limit"]),
            centroids=tuple(tuple(map(float, row)) for row in parsed["centroids"]),
            segment_names=tuple(map(str, parsed["segment_names"])),
        )


@dataclass(frozen=True)
class Fit:
    """A trained model and how it was chosen: `criterion` has one entry per candidate number."""

    model: SegmentationModel
    silhouette: float
    criterion: tuple[dict[str, float], ...]
    kept_names: tuple[str, ...]


def fit(
    frame: pl.DataFrame,
    archetypes: pl.DataFrame,
    previous: pl.DataFrame | None = None,
) -> Fit:
    """Train one month's segmentation. The order of rows does not matter.

    Args:
        frame: the training set of one month, `contracts.customer_segmentation.TRAINING_FRAME`.
        archetypes: `segment_name` and one signed weight column per trait of `FEATURES`; `recency`
            above 0 means the last purchase is long ago.
        previous: the previous month's segments (`household_id`, `segment_name`), if there are any.

    Raises:
        MendableError: not exactly one month, or too few (different) households to make segments of.
    """
    as_of_at = _only_month(frame)
    frame = frame.sort("household_id")
    features = _scaled_features(frame)
    points = _points(features, LIMIT, frame)
    different = len(np.unique(points, axis=0))
    needed = CANDIDATES[0] * HOUSEHOLDS_PER_SEGMENT
    if frame.height < needed or different < CANDIDATES[0]:
        raise MendableError(
            f"the training set of customer segmentation as of {as_of_at:%Y-%m-%d}",
            expected=f"at least {needed} households, at least {CANDIDATES[0]} of them different",
            arrived=f"{frame.height} households, {different} different",
            mend="land more transactions, or set a later WATERSHED_SEGMENTATION_FIRST_MONTH",
        )

    rows = np.random.default_rng(SEED).permutation(len(points))[:SILHOUETTE_ROWS]
    distances = cdist(points[rows], points[rows])
    criterion: list[dict[str, float]] = []
    centroids: dict[int, list[tuple[float, ...]]] = {}
    with threadpool_limits(1):  # the data is small: more threads cost more than they bring
        for count in (count for count in CANDIDATES if count <= different):
            found = KMeans(count, n_init=10, random_state=SEED).fit(points)
            centroids[count] = [
                tuple(map(_rounded, row)) for row in found.cluster_centers_.tolist()
            ]
            scores = {
                "silhouette": silhouette_score(
                    distances, found.labels_[rows], metric="precomputed"
                ),
                "smallest_share": np.bincount(found.labels_, minlength=count).min() / len(points),
            }
            criterion.append({"segments": count} | {k: _rounded(v) for k, v in scores.items()})
    chosen = _chosen(criterion, None if previous is None else previous["segment_name"].n_unique())

    spend = [feature.trait for feature in features].index("monetary")
    by_spend = sorted(centroids[int(chosen["segments"])], key=lambda row: (-row[spend], row))
    nearest = cdist(points, np.array(by_spend)).argmin(axis=1)
    names, kept = _named(
        np.array(by_spend),
        frame.select("household_id", segment=nearest),
        archetypes,
        previous,
    )
    model = SegmentationModel(as_of_at, features, LIMIT, tuple(by_spend), names)
    return Fit(model, chosen["silhouette"], tuple(criterion), kept)


def predict(model: SegmentationModel, frame: pl.DataFrame) -> pl.DataFrame:
    """The segment of each household: `contracts.customer_segmentation.SEGMENTS`, by household.

    `confidence` is 1 - d1 / d2, the distances to the nearest and the second nearest centroid: 0 on
    the border between two segments, 1 in the middle of one.
    """
    frame = frame.sort("household_id")
    distances = cdist(points(model, frame), np.array(model.centroids))
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    segment = distances.argmin(axis=1)
    ones = np.ones_like(second)
    return frame.select(
        "household_id",
        "as_of_at",
        segment_id=pl.Series(segment + 1, dtype=pl.Int32),
        segment_name=pl.Series([model.segment_names[i] for i in segment], dtype=pl.String),
        confidence=pl.Series(1 - np.divide(nearest, second, out=ones, where=second > 0)),
        model_version=pl.lit(model.version),
    )


def points(model: SegmentationModel, frame: pl.DataFrame) -> Floats:
    """Households as the model sees them: (rows, features), in standard deviations, clipped."""
    return _points(model.features, model.limit, frame)


def points_of_month(frame: pl.DataFrame) -> Floats:
    """Households in their own month's standard deviations, the same for every model: (rows, features)."""
    return _points(_scaled_features(frame), LIMIT, frame)


def describe(
    model: SegmentationModel,
    frame: pl.DataFrame,
    segments: pl.DataFrame,
    archetypes: pl.DataFrame,
    previous: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """What a marketer should know of each segment, one row per segment of the model.

    The description says how many of last month's members are still in the segment: a list of
    growing customers is stale sooner than one of champions. Then it compares the segment with all
    households: the two to four traits that differ most (a median for counts and amounts, a mean for
    shares, which are mostly 0), the kind of household that is clearly over-represented among those
    with known demographics, and the archetype's `campaign_idea`.

    Args:
        model: the month's model.
        frame: the training set it describes.
        segments: `predict(model, frame)`.
        archetypes: as in `fit`, with `campaign_idea`.
        previous: as in `fit`.

    Returns:
        as_of_at, model_version, segment_id, segment_name, description, households_count,
        households_share.
    """
    frame = frame.join(segments.select("household_id", "segment_id"), on="household_id")
    traits = [feature.trait for feature in model.features]
    ideas = dict(archetypes.select("segment_name", "campaign_idea").iter_rows())
    sales = pl.col("sales_usd_sum_90d").cast(pl.Float64).sum()
    everyone = frame.select(sales).item()
    rows = []
    for segment_id, (name, centroid) in enumerate(
        zip(model.segment_names, model.centroids, strict=True), start=1
    ):
        members = frame.filter(pl.col("segment_id") == segment_id)
        share = members.height / frame.height
        of_sales = members.select(sales).item() / everyone if everyone else 0.0
        sentences = [
            f"{members.height:,} households ({percent(share)}) with {percent(of_sales)} of sales",
            *_stay_in_words(name, segments, previous),
            *_traits_in_words(dict(zip(traits, centroid, strict=True)), members, frame),
            *_people_in_words(members, frame),
        ]
        if name in ideas:
            sentences.append(f"Idea: {ideas[name]}".rstrip("."))
        rows.append(
            {
                "as_of_at": model.as_of_at,
                "model_version": model.version,
                "segment_id": segment_id,
                "segment_name": name,
                "description": ". ".join(sentences) + ".",
                "households_count": members.height,
                "households_share": share,
            }
        )
    return pl.DataFrame(
        rows, schema_overrides={"as_of_at": pl.Datetime("us"), "segment_id": pl.Int32}
    )


def percent(share: float) -> str:
    """A share in whole percent; something small is never said to be nothing."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _only_month(frame: pl.DataFrame) -> datetime:
    months = frame["as_of_at"].unique().sort().to_list()
    if len(months) != 1:
        raise MendableError(
            "the training set of customer segmentation",
            expected="the households of exactly one month",
            arrived=f"{frame.height} rows of {len(months)} months",
            mend="build training_sets.train_customer_segmentation for that month, then train again",
        )
    month: datetime = months[0]
    return month


def _shaped(column: pl.Series, shape: str) -> Floats:
    values: Floats = column.cast(pl.Float64).fill_null(0.0).to_numpy()
    if shape == "log":
        return np.log1p(values)
    return np.sqrt(values) if shape == "root" else values


def _scaled_features(frame: pl.DataFrame) -> tuple[ScaledFeature, ...]:
    scaled = []
    for feature in FEATURES:
        values = _shaped(frame[feature.column], feature.shape)
        mean, scale = _rounded(values.mean()), _rounded(values.std())
        scale = scale if scale > 1e-9 else 0.0
        scaled.append(ScaledFeature(feature.trait, feature.column, feature.shape, mean, scale))
    return tuple(scaled)


def _points(features: tuple[ScaledFeature, ...], limit: float, frame: pl.DataFrame) -> Floats:
    """The households (rows) in standard deviations from the average household, within +-`limit`."""
    columns = [
        (_shaped(frame[f.column], f.shape) - f.mean) * (1 / f.scale if f.scale else 0.0)
        for f in features
    ]
    return np.clip(np.column_stack(columns), -limit, limit)


def _chosen(criterion: list[dict[str, float]], previous: int | None) -> dict[str, float]:
    """The candidate that the module's criterion picks; of equals, the fewest segments."""
    eligible = [entry for entry in criterion if entry["smallest_share"] >= MIN_SEGMENT_SHARE]
    if not eligible:
        return max(criterion, key=lambda entry: entry["smallest_share"])
    best = max(eligible, key=lambda entry: entry["silhouette"])
    for entry in eligible:
        enough = entry["silhouette"] >= best["silhouette"] - SILHOUETTE_MARGIN
        if entry["segments"] == previous and enough:
            return entry
    return best


def _named(
    centroids: Floats,
    members: pl.DataFrame,
    archetypes: pl.DataFrame,
    previous: pl.DataFrame | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A unique name per centroid, and the names among them that were kept.

    An archetype's fit is the cosine between a segment's profile and the archetype's weights; 0 if
    its weight on the segment's strongest trait is 0 or of the other sign, for then the name would
    keep silent about what marks the segment most.

    1. Segments are matched with the previous month's so that the Jaccard overlaps of their
       households (of those present in both months) add up to the most. A matched segment keeps the
       name if the overlap is at least `KEEP_NAME_JACCARD` and the name still describes it: the
       archetype's fit is at least `MIN_NAME_FIT` and within `NAME_FIT_MARGIN` of the best.
    2. The others share out the unused archetypes so that the fits add up to the most; a fit below
       `MIN_NAME_FIT` gives no name.
    3. Whoever is left is named after its two strongest traits.
    """
    archetypes = archetypes.sort("segment_name")
    labels: list[str] = archetypes["segment_name"].to_list()
    weights = archetypes.select(pl.col(f.trait).cast(pl.Float64) for f in FEATURES).to_numpy()
    lengths = np.outer(np.linalg.norm(centroids, axis=1), np.linalg.norm(weights, axis=1))
    fits = np.divide(centroids @ weights.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    strongest = np.abs(centroids).argmax(axis=1)
    deviations = centroids[np.arange(len(centroids)), strongest]
    fits[np.sign(weights[:, strongest].T) != np.sign(deviations)[:, None]] = 0.0

    names: dict[int, str] = {}
    if previous is not None:
        for segment, name, overlap in _matched(members, previous, len(centroids)):
            if overlap >= KEEP_NAME_JACCARD and name in labels:
                fit_of_name = fits[segment, labels.index(name)]
                if fit_of_name >= max(MIN_NAME_FIT, fits[segment].max() - NAME_FIT_MARGIN):
                    names[segment] = name
    kept = tuple(names.values())

    nameless = [segment for segment in range(len(centroids)) if segment not in names]
    unused = [column for column, label in enumerate(labels) if label not in kept]
    open_fits = fits[np.ix_(nameless, unused)]
    for row, column in zip(*linear_sum_assignment(open_fits, maximize=True), strict=True):
        if open_fits[row, column] >= MIN_NAME_FIT:
            names[nameless[row]] = labels[unused[column]]

    for segment in nameless:
        if segment not in names:
            traits = np.argsort(-np.abs(centroids[segment]), kind="stable")[:2]
            first, second = (_phrase(FEATURES[i], centroids[segment, i]) for i in traits)
            name = f"{first} and {second[0].lower()}{second[1:]}"
            names[segment] = name if name not in names.values() else f"{name} ({segment + 1})"
    return tuple(names[segment] for segment in range(len(centroids))), kept


def _matched(
    members: pl.DataFrame, previous: pl.DataFrame, count: int
) -> list[tuple[int, str, float]]:
    """Pairs of segment (row of the centroids) and previous name, with their Jaccard overlap."""
    both = members.join(previous.select("household_id", name="segment_name"), on="household_id")
    names = sorted(both["name"].unique())
    together = np.zeros((count, len(names)))
    for segment, name, households in both.group_by("segment", "name").len().iter_rows():
        together[segment, names.index(name)] = households
    either = together.sum(axis=1, keepdims=True) + together.sum(axis=0, keepdims=True) - together
    jaccard = np.divide(together, either, out=np.zeros_like(together), where=either > 0)
    pairs = zip(*linear_sum_assignment(jaccard, maximize=True), strict=True)
    return [(int(row), names[column], float(jaccard[row, column])) for row, column in pairs]


def _phrase(feature: Feature, deviation: float) -> str:
    return feature.high if deviation > 0 else feature.low


def _traits_in_words(
    centroid: dict[str, float], members: pl.DataFrame, everyone: pl.DataFrame
) -> list[str]:
    """The strongest traits, at least two and at most four, that the figures bear out.

    A figure that most members lack (a lapsed household has no baskets to average) says nothing.
    """
    sentences: list[str] = []
    for feature in sorted(FEATURES, key=lambda feature: -abs(centroid[feature.trait])):
        deviation = centroid[feature.trait]
        if len(sentences) == 4 or (len(sentences) >= 2 and abs(deviation) < STRONG_TRAIT):
            break
        here, overall = (group.select(feature.figure).item() for group in (members, everyone))
        known = members[feature.column].count() / max(members.height, 1)
        if here is None or overall is None or known < 0.5 or (here - overall) * deviation <= 0:
            continue
        said, usual = feature.number.format(here), feature.number.format(overall)
        if said != usual:
            phrase, said = _phrase(feature, deviation), feature.words.format(said)
            sentences.append(f"{phrase}: {said} (all: {usual})")
    return sentences


def _stay_in_words(name: str, segments: pl.DataFrame, previous: pl.DataFrame | None) -> list[str]:
    """How many of last month's members are in the segment this month, if it had any."""
    if previous is None:
        return []
    before = previous.filter(segment_name=name).join(segments, on="household_id", suffix="_now")
    if before.is_empty():
        return []
    stayed = before.select((pl.col("segment_name_now") == name).mean()).item()
    return [f"{percent(stayed)} of last month's members are still in it"]


def _people_in_words(members: pl.DataFrame, everyone: pl.DataFrame) -> list[str]:
    """The kind of household most clearly over-represented: by 5 points and 2.5 standard errors."""
    known = everyone.filter("has_demographics")
    inside = members.filter("has_demographics")
    kinds = dict(_PEOPLE)
    for column, words in (("age_band", "aged"), ("income_band", "with an income of")):
        for band in known[column].drop_nulls().unique().sort():
            kinds[f"households {words} {band}"] = pl.col(column) == band
    best, sentence = 2.5, []
    for words, condition in kinds.items():
        overall = known.select(condition.mean()).item()
        here, households = inside.select(condition.mean(), condition.count().alias("known")).row(0)
        if households < KNOWN_HOUSEHOLDS or not 0 < overall < 1:
            continue
        errors = (here - overall) / math.sqrt(overall * (1 - overall) / households)
        if errors > best and here - overall >= 0.05:
            best = errors
            compared = f"{here:.0%} against {overall:.0%} of those known"
            sentence = [f"Over-represented: {words} ({compared})"]
    return sentence


def _rounded(value: float) -> float:
    """Ten significant digits: enough to score, few enough to be the same on every machine."""
    return float(f"{value:.10g}")
