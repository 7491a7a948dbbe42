"""Customer segmentation: stable, deterministic, truthful groups of households."""

from __future__ import annotations

import datetime as dt
import json
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.contracts.customer_segmentation import SEGMENTS
from orchestration.errors import MendableError
from orchestration.learning.customer_segmentation import (
    FEATURES,
    MIN_SEGMENT_SHARE,
    SILHOUETTE_MARGIN,
    Fit,
    SegmentationModel,
    _chosen,
    _named,
    describe,
    fit,
    predict,
)
from tests.unit.learning.customers import (
    FEBRUARY,
    JANUARY,
    KINDS,
    TRAITS,
    archetypes,
    customers,
    kind_of,
)


@cache
def january() -> tuple[Fit, pl.DataFrame]:
    fitted = fit(customers(), archetypes())
    return fitted, predict(fitted.model, customers())


def names_by_household(segments: pl.DataFrame) -> dict[int, str]:
    return dict(segments.select("household_id", "segment_name").iter_rows())


def test_groups_of_customers_are_found_and_called_what_they_are():
    fitted, segments = january()
    assert len(fitted.model.centroids) == len(KINDS)
    assert names_by_household(segments) == {h: kind_of(h) for h in segments["household_id"]}


def test_segment_ids_count_from_the_biggest_spenders():
    model = january()[0].model
    spending = [centroid[TRAITS.index("monetary")] for centroid in model.centroids]
    assert spending == sorted(spending, reverse=True)
    assert model.segment_names[0] == "Champions"


def test_features_stand_in_the_order_of_the_archetypes_weights():
    assert tuple(feature.trait for feature in FEATURES) == TRAITS


def test_order_of_rows_and_archetypes_does_not_matter():
    fitted, segments = january()
    shuffled = customers().sample(fraction=1, shuffle=True, seed=3)
    again = fit(shuffled, archetypes().reverse())
    assert again.model.to_json() == fitted.model.to_json()
    assert again.criterion == fitted.criterion
    assert predict(again.model, shuffled).equals(segments)


def test_order_of_rows_does_not_matter_where_nobody_belongs_together():
    blurred = customers().with_columns(
        pl.col(feature.column).shuffle(seed=number) for number, feature in enumerate(FEATURES)
    )
    shuffled = blurred.sample(fraction=1, shuffle=True, seed=3)
    assert fit(shuffled, archetypes()).model == fit(blurred, archetypes()).model


def test_a_model_scores_identically_after_json():
    fitted, segments = january()
    loaded = SegmentationModel.from_json(fitted.model.to_json())
    assert loaded == fitted.model
    assert loaded.version == fitted.model.version
    assert predict(loaded, customers()).equals(segments)


def test_the_version_names_the_segmented_month_and_changes_with_the_numbers():
    version = january()[0].model.version
    other = fit(customers(seed=2), archetypes()).model.version
    assert version.startswith("customer_segmentation-2017-01-")
    assert len(version) == len("customer_segmentation-2017-01-") + 8
    assert other != version


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "centroids"}),
        lambda text: json.dumps(json.loads(text) | {"limit": 9.0}),
        lambda text: json.dumps(json.loads(text) | {"limit": float("nan")}),
        lambda text: "[]",
    ],
    ids=["cut_short", "without_centroids", "changed", "not_a_number", "another_shape"],
)
def test_a_broken_or_changed_model_is_refused(spoil):
    with pytest.raises(MendableError, match="materialise trained_models/customer_segmentation"):
        SegmentationModel.from_json(spoil(january()[0].model.to_json()))


def test_the_same_customers_keep_their_names_next_month():
    _, segments = january()
    frame = customers(FEBRUARY, seed=7)
    fitted = fit(frame, archetypes(), segments)
    assert set(fitted.kept_names) == set(KINDS)
    assert names_by_household(predict(fitted.model, frame)) == names_by_household(segments)


def archetypes_with_a_twin_of_champions() -> pl.DataFrame:
    """`Old friends` describe the same households, a little worse."""
    twin = archetypes().filter(segment_name="Champions")
    twin = twin.with_columns(segment_name=pl.lit("Old friends"), coupon=pl.lit(0.5))
    return pl.concat([archetypes(), twin])


def test_a_kept_name_wins_over_an_archetype_that_fits_a_little_better():
    previous = january()[1].with_columns(
        pl.col("segment_name").replace({"Champions": "Old friends"})
    )
    fitted = fit(customers(FEBRUARY, seed=7), archetypes_with_a_twin_of_champions(), previous)
    assert "Old friends" in fitted.kept_names
    assert "Champions" not in fitted.model.segment_names


def test_a_name_is_not_kept_for_a_few_households_in_common():
    few = pl.when(pl.col("household_id") <= 8).then(pl.lit("Old friends"))
    previous = january()[1].with_columns(segment_name=few.otherwise(pl.lit("Everybody else")))
    fitted = fit(customers(FEBRUARY, seed=7), archetypes_with_a_twin_of_champions(), previous)
    assert fitted.kept_names == ()
    assert "Champions" in fitted.model.segment_names


def test_a_name_is_dropped_once_it_no_longer_describes_the_segment():
    swapped = {"Lapsed customers": "Growing customers", "Growing customers": "Lapsed customers"}
    previous = january()[1].with_columns(pl.col("segment_name").replace(swapped))
    fitted = fit(customers(FEBRUARY, seed=7), archetypes(), previous)
    named = names_by_household(predict(fitted.model, customers(FEBRUARY, seed=7)))
    assert named == {household: kind_of(household) for household in named}
    assert set(fitted.kept_names) == set(KINDS) - set(swapped)


def test_a_name_that_keeps_silent_about_the_strongest_trait_is_not_given():
    profile = {"fresh": 1.5, "monetary": -1.2, "frequency": -1.0, "recency": 0.8}
    centroids = np.array([[profile.get(trait, 0.0) for trait in TRAITS]])
    nobody = pl.DataFrame({"household_id": [1], "segment": [0]})
    lapsed = archetypes().filter(segment_name="Lapsed customers")
    assert _named(centroids, nobody, archetypes(), None)[0] == ("Fresh-food lovers",)
    assert _named(centroids, nobody, lapsed, None)[0] == ("Buy fresh food and spend little",)


@pytest.mark.parametrize(
    ("days", "small", "name"), [(0.5, 1.2, "Light shoppers"), (2.1, 2.4, "Lapsed customers")]
)
def test_small_buyers_are_light_shoppers_until_they_have_been_away_for_long(days, small, name):
    seed = pl.read_csv(Path(__file__).parents[3] / "seeds" / "segment_archetypes.csv")
    small_in = {"frequency": 1, "monetary": 1, "basket_size": 1, "breadth": 1, "fresh": 0.6}
    centroid = [days if t == "recency" else -small * small_in.get(t, 0) for t in TRAITS]
    nobody = pl.DataFrame(schema={"household_id": pl.Int64, "segment": pl.Int64})
    assert _named(np.array([centroid]), nobody, seed, None)[0] == (name,)


def test_segments_without_an_archetype_are_named_after_their_strongest_traits():
    model = fit(customers(), archetypes().head(1)).model
    assert model.segment_names[0] == "Champions"
    assert len(set(model.segment_names)) == len(KINDS)
    lapsed = model.segment_names[-1]
    assert " and " in lapsed
    assert "spend little" in lapsed.lower() or "away for long" in lapsed.lower()


HALF = MIN_SEGMENT_SHARE / 2
ENOUGH = MIN_SEGMENT_SHARE


@pytest.mark.parametrize(
    ("criterion", "previous", "chosen"),
    [
        ([(5, 0.20, ENOUGH), (6, 0.25, ENOUGH), (7, 0.22, ENOUGH)], None, 6),
        ([(5, 0.20, ENOUGH), (6, 0.25, HALF)], None, 5),
        ([(5, 0.20, 0.0), (6, 0.25, HALF), (7, 0.30, 0.0)], None, 6),
        ([(5, 0.20, ENOUGH), (6, 0.20, ENOUGH)], None, 5),
        ([(5, 0.25 - SILHOUETTE_MARGIN / 2, ENOUGH), (6, 0.25, ENOUGH)], 5, 5),
        ([(5, 0.25 - SILHOUETTE_MARGIN * 2, ENOUGH), (6, 0.25, ENOUGH)], 5, 6),
        ([(5, 0.24, HALF), (6, 0.25, ENOUGH)], 5, 6),
        ([(5, 0.24, ENOUGH), (6, 0.25, ENOUGH)], 9, 6),
    ],
    ids=[
        "highest_silhouette", "no_tiny_segment", "only_tiny_ones", "equals", "previous_stays",
        "previous_beaten", "previous_has_a_tiny_segment", "previous_is_no_candidate",
    ],
)  # fmt: skip
def test_the_number_of_segments_follows_the_criterion(criterion, previous, chosen):
    entries = [
        {"segments": count, "silhouette": silhouette, "smallest_share": share}
        for count, silhouette, share in criterion
    ]
    assert _chosen(entries, previous)["segments"] == chosen


def test_the_chosen_number_and_its_silhouette_stand_in_the_criterion():
    fitted = january()[0]
    entry = {entry["segments"]: entry for entry in fitted.criterion}[len(fitted.model.centroids)]
    assert entry["silhouette"] == fitted.silhouette
    assert json.loads(json.dumps(fitted.criterion)) == list(fitted.criterion)


def test_columns_that_are_null_or_without_variance_count_for_nothing():
    frame = customers().with_columns(
        coupon_lines_share_90d=pl.lit(None, pl.Float64), campaign_response_rate_365d=pl.lit(0.3)
    )
    model = fit(frame, archetypes()).model
    for trait in ("coupon", "campaign"):
        assert {row[TRAITS.index(trait)] for row in model.centroids} == {0.0}
    assert predict(model, frame)["confidence"].is_between(0, 1).all()


def test_one_outlier_does_not_own_a_segment():
    huge = pl.when(pl.col("household_id") == 1).then(1_000_000_000)
    frame = customers().with_columns(
        huge.otherwise("baskets_count_90d").alias("baskets_count_90d"),
        huge.otherwise("departments_count_90d").alias("departments_count_90d"),
    )
    segments = predict(fit(frame, archetypes()).model, frame)
    assert segments["segment_id"].value_counts()["count"].min() >= MIN_SEGMENT_SHARE * frame.height


@pytest.mark.parametrize(
    ("frame", "arrived"),
    [
        (customers().clear(), "0 rows of 0 months"),
        (pl.concat([customers(), customers(FEBRUARY)]), "480 rows of 2 months"),
        (customers(each=5), "30 households"),
        (
            customers().with_columns(pl.exclude("household_id").first()),
            "240 households, 1 different",
        ),
    ],
    ids=["empty", "two_months", "tiny", "all_alike"],
)
def test_a_frame_nothing_can_be_learned_from_is_a_clear_error(frame, arrived):
    with pytest.raises(MendableError) as error:
        fit(frame, archetypes())
    assert arrived in error.value.arrived


def described() -> dict[str, dict]:
    fitted, segments = january()
    rows = describe(fitted.model, customers(), segments, archetypes())
    return {row["segment_name"]: row for row in rows.iter_rows(named=True)}


def test_a_description_says_what_is_true_and_in_the_right_direction():
    champions, lapsed = described()["Champions"], described()["Lapsed customers"]
    assert champions["description"].startswith("40 households (17%) with ")
    assert "Shop often: " in champions["description"]
    assert "Shop rarely" not in champions["description"]
    assert "Over-represented: families with kids (100% against 17%" in champions["description"]
    assert champions["description"].endswith("Idea: Do something for champions.")
    assert "Away for long: " in lapsed["description"]
    assert "kids" not in lapsed["description"]
    assert "Buy less than before: sales -" in described()["Fading customers"]["description"]
    assert "Buy more than before: sales +" in described()["Growing customers"]["description"]


def test_a_description_says_how_many_of_last_months_members_stayed():
    fitted, segments = january()
    champions = pl.col("household_id").is_in([1, 2, 3, 4])
    previous = segments.with_columns(
        segment_name=pl.when(champions).then(pl.lit("Lapsed customers")).otherwise("segment_name")
    ).filter(pl.col("segment_name") != "Fading customers")
    rows = describe(fitted.model, customers(), segments, archetypes(), previous)
    said = dict(rows.select("segment_name", "description").iter_rows())
    assert "100% of last month's members are still in it" in said["Champions"]
    assert "91% of last month's members are still in it" in said["Lapsed customers"]  # 40 of 44
    assert "last month" not in said["Fading customers"]
    assert not described()["Champions"]["description"].count("last month")


def test_a_description_keeps_silent_about_figures_that_most_members_lack():
    few = pl.col("household_id").is_between(201, 210)
    frame = customers().with_columns(
        basket_usd_avg_90d=pl.when(few).then(3.0).otherwise("basket_usd_avg_90d")
    )
    fitted, segments = january()
    rows = describe(fitted.model, frame, segments, archetypes())
    lapsed = rows.filter(segment_name="Lapsed customers")["description"][0]
    assert "Spend little: " in lapsed
    assert "a basket" not in lapsed


def test_a_description_claims_no_trait_that_its_figures_contradict():
    fading = pl.col("household_id").is_between(81, 120)
    much_more = pl.col("sales_usd_sum_prior_60d") * 20
    frame = customers().with_columns(
        sales_usd_sum_60d=pl.when(fading).then(much_more).otherwise("sales_usd_sum_60d")
    )
    fitted, segments = january()
    rows = describe(fitted.model, frame, segments, archetypes())
    said = rows.filter(segment_name="Fading customers")["description"][0]
    assert "Buy less than before" not in said


def test_a_description_keeps_silent_about_people_when_few_of_them_are_known():
    few = (pl.col("household_id") > 40) | (pl.col("household_id") <= 12)
    frame = customers().with_columns(has_demographics=pl.col("has_demographics") & few)
    fitted, segments = january()
    rows = describe(fitted.model, frame, segments, archetypes())
    assert not rows["description"].str.contains("Over-represented").any()


def test_descriptions_count_every_household_once():
    rows = described().values()
    assert sum(row["households_count"] for row in rows) == customers().height
    assert sum(row["households_share"] for row in rows) == pytest.approx(1)


SCHEMA = customers().select("household_id", "as_of_at", *(f.column for f in FEATURES)).schema
share = st.none() | st.floats(0, 1)
household = st.fixed_dictionaries(
    {
        "days_since_last_purchase": st.integers(0, 5000),
        "baskets_count_90d": st.integers(0, 10**6),
        "sales_usd_sum_90d": st.integers(0, 10**9),
        "basket_usd_avg_90d": st.none() | st.floats(0, 1e9),
        "departments_count_90d": st.integers(0, 1000),
        "campaign_response_rate_365d": st.none() | st.floats(0, 3),
        "sales_trend_60d": st.none() | st.floats(-1, 1),
        "retail_discount_share_90d": share,
        "coupon_lines_share_90d": share,
        "private_label_share_90d": share,
        "fresh_share_90d": share,
    }
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(household, min_size=1, max_size=20))
def test_every_household_gets_exactly_one_segment_with_a_confidence(households):
    rows = [
        {"household_id": number, "as_of_at": JANUARY, **row}
        for number, row in enumerate(households, start=1)
    ]
    model = january()[0].model
    segments = SEGMENTS.validate(predict(model, pl.DataFrame(rows, schema=SCHEMA)))
    assert segments["household_id"].to_list() == list(range(1, len(rows) + 1))
    assert set(segments["segment_name"]) <= set(model.segment_names)


def test_scoring_nobody_gives_nobody():
    segments = predict(january()[0].model, customers().clear())
    assert segments.height == 0
    assert segments.schema == january()[1].schema


def test_a_later_month_is_scored_as_of_itself_by_an_older_model():
    segments = predict(january()[0].model, customers(FEBRUARY))
    assert segments["as_of_at"].unique().to_list() == [dt.datetime(2017, 3, 1)]
    assert segments["model_version"].unique().to_list() == [january()[0].model.version]
