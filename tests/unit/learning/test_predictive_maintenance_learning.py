"""Machines' health is learned without the future, by machine, with censoring, and stored without loss."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.contracts.predictive_maintenance import TRAINING_FRAME
from orchestration.errors import MendableError
from orchestration.learning import machine_health
from orchestration.learning import predictive_maintenance as learning
from orchestration.learning.machine_health import (
    ALGORITHMS,
    MACHINE_FEATURES,
    SENSOR_FEATURES,
    Model,
    baseline_rule,
)
from orchestration.learning.predictive_maintenance import (
    Hours,
    calibration_error,
    chance_to_be_known,
    evaluate,
    fit,
    hours_of,
    known_at,
    months,
    next_month,
    warnings_of,
)
from orchestration.learning.predictive_maintenance_plots import (
    draw_calibration,
    draw_fleet,
    draw_machine,
    draw_remaining_life,
    models_table,
)
from tests.unit.learning.machines import POLICY, SENSORS, START, training_frame

T = datetime(2025, 2, 1)
HOUR = timedelta(hours=1)
PNG = b"\x89PNG\r\n"


@cache
def hours() -> Hours:
    return hours_of(training_frame())


@cache
def unseen() -> Hours:
    """Machines that no model has learned from."""
    return hours_of(training_frame(machines=12, seed=99, preventive=0.0))


@cache
def fitted(algorithm: str = "lightgbm") -> learning.Fit:
    return fit(known_at(hours(), T, POLICY), algorithm, "pump", T, POLICY)


@pytest.fixture
def few_rounds(monkeypatch):
    for name in ("classifier", "regressor"):
        monkeypatch.setitem(learning._ROUNDS, name, 5)


# ---------------------------------------------------------------- rows


def test_the_synthetic_machines_hold_the_contract():
    TRAINING_FRAME.validate(training_frame(), lazy=True)


def test_the_long_set_becomes_a_row_per_machine_and_hour_in_any_order():
    frame = training_frame()
    got = hours()
    assert got.rows.height == frame.select("machine_id", "as_of_at").unique().height
    assert got.matrix.shape == (got.rows.height, 3 * len(SENSOR_FEATURES) + len(MACHINE_FEATURES))
    shuffled = hours_of(frame.sample(fraction=1, shuffle=True, seed=3))
    assert shuffled.rows.equals(got.rows)
    np.testing.assert_array_equal(shuffled.matrix, got.matrix)
    row = got.rows.height // 2
    key = got.rows.select("machine_id", "as_of_at").row(row)
    for column, (sensor, feature) in enumerate(got.inputs):
        of_it = (pl.col("machine_id") == key[0]) & (pl.col("as_of_at") == key[1])
        one = frame.filter(of_it & (pl.col("sensor") == sensor) if sensor else of_it)[feature][0]
        assert got.matrix[row, column] == float(one)


def test_a_sensor_that_is_absent_or_not_finite_is_missing_and_nothing_is_filled():
    frame = training_frame(machines=2, days=3)
    gone = (pl.col("sensor") == "vibration_mm_s") & (pl.col("machine_id") == "pump_00")
    wild = pl.when(pl.col("as_of_at") > START + 20 * HOUR).then(float("inf"))
    got = hours_of(
        frame.filter(~gone).with_columns(
            deviation_distance_6h=wild.otherwise("deviation_distance_6h"),
            deviation_slope_24h=pl.lit(None, pl.Float64),
        )
    )
    of_it = got.for_inputs([("vibration_mm_s", "deviation_avg_24h")])[:, 0]
    silent = (got.rows["machine_id"] == "pump_00").to_numpy()
    assert np.isnan(of_it[silent]).all()
    assert not np.isnan(of_it[~silent]).any()
    assert np.isnan(got.for_inputs([("temperature_c", "deviation_slope_24h")])).all()
    assert not np.isinf(got.matrix).any()
    assert np.isnan(got.for_inputs([("a sensor of another house", "is_stuck")])).all()


def test_months_begin_after_the_first_hour_and_end_with_the_last():
    assert months(datetime(2024, 11, 30, 5), datetime(2025, 2, 1)) == [
        datetime(2024, 12, 1),
        datetime(2025, 1, 1),
        datetime(2025, 2, 1),
    ]
    assert months(datetime(2025, 1, 1), datetime(2025, 1, 31, 23)) == []


# ---------------------------------------------------------------- nothing later than T


def test_what_failed_after_t_was_not_known_to_fail_at_t():
    past = known_at(hours(), T, POLICY).rows
    assert past["as_of_at"].max() < T
    assert past["failed_at"].drop_nulls().max() <= T
    assert past["observed_until"].max() <= T
    running = past.filter(pl.col("is_censored") & (pl.col("remaining_hours") < 24))
    assert running.height > 0
    assert running["label"].null_count() == running.height
    assert not past.filter(pl.col("is_censored") & (pl.col("remaining_hours") >= 24))["label"].any()
    assert past.filter(~pl.col("is_censored") & (pl.col("remaining_hours") <= 24))["label"].all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), stays=st.booleans())
def test_no_fact_after_t_is_in_what_is_learned_as_of_t(seed, stays):
    """Whatever is changed or comes after T: the same rows go into the fit."""
    rng = np.random.default_rng(seed)
    frame = training_frame()
    after = pl.col("as_of_at") >= T
    later = pl.col("failed_at").is_null() | (pl.col("failed_at") > T)
    until = T + timedelta(hours=int(rng.integers(1, 500)))
    failed = until if rng.random() < 0.5 else None
    changed = frame.with_columns(
        *(
            pl.when(after).then(pl.lit(float(rng.normal()))).otherwise(pl.col(name)).alias(name)
            for name in ("deviation_avg_24h", "deviation_distance_24h", "episode_hours")
        ),
        failed_at=pl.when(later).then(pl.lit(failed, pl.Datetime("us"))).otherwise("failed_at"),
        observed_until=pl.when(later).then(pl.lit(until)).otherwise("observed_until"),
        remaining_hours=pl.when(later).then(pl.lit(float(rng.integers(0, 99)))).otherwise("remaining_hours"),
        is_censored=pl.when(later).then(pl.lit(bool(rng.random() < 0.5))).otherwise("is_censored"),
        label=pl.when(later).then(pl.lit(bool(rng.random() < 0.5))).otherwise("label"),
    )  # fmt: skip
    if not stays:
        changed = changed.filter(~after | (pl.lit(rng.random(frame.height)) < 0.5))
    then, now = known_at(hours(), T, POLICY), known_at(hours_of(changed), T, POLICY)
    assert then.rows.equals(now.rows)
    np.testing.assert_array_equal(then.matrix, now.matrix)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_as_of_t_is_the_same_whether_or_not_the_rest_is_there(algorithm, few_rounds):
    before = hours_of(training_frame().filter(pl.col("as_of_at") < T))
    versions = {
        fit(known_at(got, T, POLICY), algorithm, "pump", T, POLICY).model.version
        for got in (hours(), before)
    }
    assert len(versions) == 1


# ---------------------------------------------------------------- by machine


def test_a_machine_is_in_one_fold_and_every_fold_has_failures_to_learn_from():
    rows = known_at(hours(), T, POLICY).rows
    fold = learning._folds(rows)
    folds = rows.with_columns(fold=pl.Series(fold))
    assert folds.group_by("machine_id").agg(pl.col("fold").n_unique())["fold"].max() == 1
    failed = folds.filter(pl.col("failed_at").is_not_null())
    assert failed["fold"].n_unique() == learning.FOLDS


def test_out_of_fold_scores_come_from_models_without_that_machine(few_rounds):
    """Change one machine's sensors: scores of its fold change only by its own rows."""
    past = known_at(hours(), T, POLICY)
    of_it = (past.rows["machine_id"] == past.rows["machine_id"][0]).to_numpy()
    fold = learning._folds(past.rows)
    others = (fold == fold[of_it][0]) & ~of_it
    assert others.any()
    matrix = past.matrix.copy()
    used = learning._inputs_used(past, "lightgbm")  # the rest is not looked at
    varies = [past.inputs.index(name) for name in used]
    matrix[np.ix_(of_it, varies)] *= -1
    first, second = (
        fit(Hours(past.rows, m, past.inputs), "lightgbm", "pump", T, POLICY).out_of_fold
        for m in (past.matrix, matrix)
    )
    np.testing.assert_array_equal(first.remaining_hours[others], second.remaining_hours[others])
    assert (first.remaining_hours[~others] != second.remaining_hours[~others]).any()


# ---------------------------------------------------------------- censoring


def test_kaplan_meier_counts_who_was_still_observed():
    time = np.array([1.0, 2.0, 2.0, 3.0, 4.0])
    censored = np.array([False, True, False, True, False])
    got = chance_to_be_known(time, censored, np.array([1.0, 2.0, 2.5, 3.0, 4.0]))
    np.testing.assert_allclose(got, [1, 1, 3 / 4, 3 / 4, 3 / 8])


def test_censored_hours_pull_remaining_life_up_and_never_down(few_rounds, monkeypatch):
    """Of two like groups, the hours that were cut short raise what is said of both."""
    monkeypatch.setitem(learning._ROUNDS, "regressor", 200)
    past = known_at(hours(), T, POLICY)
    is_cut = past.rows["is_censored"].to_numpy()
    assert 0.1 < is_cut.mean() < 0.7
    truthful = fit(past, "lightgbm", "pump", T, POLICY).model
    as_failure = past.rows.with_columns(
        failed_at=pl.coalesce("failed_at", "observed_until"), is_censored=pl.lit(False)
    ).with_columns(label=pl.col("remaining_hours") <= POLICY.horizon_hours)
    mistaken = fit(Hours(as_failure, past.matrix, past.inputs), "lightgbm", "pump", T, POLICY).model
    matrix = unseen().for_inputs(truthful.inputs)
    right = truthful.score(matrix).remaining_hours
    wrong = mistaken.score(unseen().for_inputs(mistaken.inputs)).remaining_hours
    assert right.mean() > wrong.mean() + 3
    truth = np.minimum(unseen().rows["remaining_hours"].to_numpy(), POLICY.remaining_cap_hours)
    seen_to_fail = ~unseen().rows["is_censored"].to_numpy()
    off = [np.abs(told - truth)[seen_to_fail].mean() for told in (right, wrong)]
    assert off[0] < off[1]


@pytest.mark.parametrize("kind", ["boosted", "ridge"])
def test_a_lower_bound_below_what_is_predicted_changes_nothing(kind, monkeypatch):
    monkeypatch.setitem(learning._ROUNDS, "regressor", 30)
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(2000, 3))
    life = np.clip(30 + 10 * matrix[:, 0], 0, 60)
    low = np.full(500, 1.0)
    both = np.concatenate([matrix, matrix[:500]])
    is_bound = np.arange(2500) >= 2000

    def predicted(inputs, target, bound):
        if kind == "ridge":
            line = learning._ridge(inputs, target, bound)
            return machine_health._Lines(line, line).predict(matrix)[1]
        trees = learning._boosted_remaining(inputs, target, bound, ["a", "b", "c"])
        return machine_health._Trees(trees, trees).predict(matrix)[1]

    alone = predicted(matrix, life, np.zeros(2000, bool))
    with_low = predicted(both, np.concatenate([life, low]), is_bound)
    with_high = predicted(both, np.concatenate([life, np.full(500, 60.0)]), is_bound)
    counted = predicted(both, np.concatenate([life, low]), np.zeros(2500, bool))
    assert abs((with_low - alone).mean()) < 1.0
    assert (with_high - alone).mean() > 2
    assert (counted - alone).mean() < -2


# ---------------------------------------------------------------- honest numbers


def test_out_of_fold_probabilities_are_calibrated():
    past = known_at(hours(), T, POLICY)
    known = past.rows["label"].is_not_null().to_numpy()
    label = past.rows["label"].fill_null(False).to_numpy()[known]
    for algorithm in ALGORITHMS:
        told = fitted(algorithm).out_of_fold.failure_probability[known]
        assert calibration_error(label, told) < 0.03
        assert told.min() > 0
        assert told.max() < 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_interval_holds_about_80_percent_and_probabilities_hold_on_machines_never_seen(
    algorithm,
):
    model = fitted(algorithm).model
    told = model.score(unseen().for_inputs(model.inputs))
    metrics = evaluate(unseen(), told, POLICY, mean_life=100)
    assert metrics.interval_coverage == pytest.approx(0.8, abs=0.1)
    assert metrics.calibration_error < 0.05
    assert metrics.average_precision > 0.8
    mid, low, high = told[1:]
    assert (low >= 0).all()
    assert (low <= mid).all()
    assert (mid <= high).all()
    assert (high <= POLICY.remaining_cap_hours).all()


def test_lightgbm_is_better_than_the_mean_life_and_metrics_are_what_they_say():
    model = fitted().model
    month = unseen().between(START, START + timedelta(days=25))  # what came of it was seen later
    told = model.score(month.for_inputs(model.inputs))
    metrics = evaluate(month, told, POLICY, mean_life=100)
    rows, cap = month.rows, float(POLICY.remaining_cap_hours)
    off = told.remaining_hours - np.minimum(rows["remaining_hours"].to_numpy(), cap)
    assert not rows["is_censored"].any()
    assert metrics.remaining_hours_rmse_all == pytest.approx(np.sqrt((off**2).mean()))
    last = rows.with_row_index().group_by("machine_id").agg(pl.col("index").max())["index"]
    at_last = off[last.to_numpy()]
    assert metrics.remaining_hours_rmse == pytest.approx(np.sqrt((at_last**2).mean()))
    assert metrics.remaining_hours_rmse_all < 6
    assert metrics.remaining_hours_rmse < 6 < metrics.mean_life_rmse
    failures = rows.select("machine_id", "failed_at").unique().height
    assert metrics.tested_failures == failures > 20


def test_a_month_without_anything_known_has_no_metrics():
    none = unseen().where(np.zeros(len(unseen().matrix), bool))
    model = fitted().model
    got = evaluate(none, model.score(none.for_inputs(model.inputs)), POLICY, 100)
    assert got.tested_hours == 0
    assert {got.remaining_hours_rmse, got.interval_coverage, got.average_precision} == {None}


def test_the_threshold_costs_least_and_calls_out_for_failures():
    past, model = known_at(hours(), T, POLICY), fitted().model
    told = fitted().out_of_fold.failure_probability

    def cost(threshold):
        every = np.full(len(told), threshold)
        _, found = warnings_of(past.rows, told, every, POLICY)
        return learning.cost_of(past.rows, found, POLICY)

    at_it, false_share = cost(model.warning_threshold)
    assert false_share <= learning.MOST_FALSE
    assert at_it == min(c for c, f in map(cost, learning.THRESHOLDS) if f <= learning.MOST_FALSE)
    assert at_it < 0.6 * learning.cost_of(past.rows, [], POLICY)[0]


def test_what_warnings_cost_is_counted_by_hand():
    """One failure met in time, one warned too late, one call-out in vain."""
    at = [START + n * HOUR for n in range(60)]
    ends = START + 59 * HOUR
    rows = pl.DataFrame(
        {
            "machine_id": ["a"] * 60 + ["b"] * 60,
            "as_of_at": at * 2,
            "episode_number": [0] * 120,
            "failed_at": [ends] * 120,
            "label": [(ends - t) / HOUR <= 24 for t in at] * 2,
        }
    )
    warned = learning.Warned
    found = [
        warned("1", "a", 5, at[5], at[9], "recovered"),
        warned("2", "a", 50, at[50]),
        warned("3", "b", 118, at[58]),
    ]
    cost, false_share = learning.cost_of(rows, found, POLICY)
    assert cost == 3 * 500 + (4 + 16) * 1000
    assert false_share == pytest.approx(1 / 3)


def test_too_few_failures_are_said_and_not_learned_from():
    few = known_at(hours_of(training_frame(machines=4)), T, POLICY)
    assert "of 4 machines" in learning.cannot_be_trained(few)
    with pytest.raises(MendableError, match="of 5 machines"):
        fit(few, "lightgbm", "pump", T, POLICY)
    assert learning.cannot_be_trained(known_at(hours(), T, POLICY)) == ""
    assert learning.cannot_be_trained(known_at(hours(), START, POLICY))


def test_constant_inputs_are_dropped_and_settings_that_are_missing_do_not_matter():
    used = fitted().model.inputs
    assert ("vibration_mm_s", "deviation_distance_24h") in used
    assert not [feature for _, feature in used if feature in ("is_stuck", "errors_count_24h")]
    assert {feature for _, feature in fitted("baseline").model.inputs} == {
        *learning.BASELINE_FEATURES
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_few_hours_with_silent_sensors_are_learned_from_without_a_crash(algorithm):
    """Ten failures of five machines, 20 hours each; one sensor is heard on one machine only."""
    frame = training_frame(machines=5, days=12, preventive=0.0, seed=2)
    few = frame.filter((pl.col("remaining_hours") < 60) & pl.col("failed_at").is_not_null()).filter(
        pl.col("remaining_hours") % 3 == 0
    )
    alone = (pl.col("sensor") != "temperature_c") | (pl.col("machine_id") == "pump_00")
    past = known_at(hours_of(few.filter(alone)), T, POLICY)
    assert past.rows.height < 300
    model = Model.from_json(fit(past, algorithm, "pump", T, POLICY).model.to_json())
    told = model.score(unseen().for_inputs(model.inputs))
    assert np.isfinite(told).all()


# ---------------------------------------------------------------- the stored model


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stored_model_scores_identically(algorithm):
    model = fitted(algorithm).model
    again = Model.from_json(model.to_json())
    assert again.version == model.version
    assert again.version.startswith("predictive_maintenance-pump-2025-02-01-")
    assert again.to_json() == model.to_json()
    matrix = unseen().for_inputs(model.inputs)[:500].copy()
    matrix[::7, ::3] = np.nan
    for one, two in zip(model.score(matrix), again.score(matrix), strict=True):
        np.testing.assert_array_equal(one, two)
    assert again.reasons(matrix[:5]) == model.reasons(matrix[:5])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_row_scores_the_same_alone_and_among_others(algorithm):
    model = fitted(algorithm).model
    matrix = unseen().for_inputs(model.inputs)[:50]
    for row, *together in zip(matrix, *model.score(matrix), strict=True):
        alone = [float(values[0]) for values in model.score(row[None, :])]
        np.testing.assert_allclose(alone, together, rtol=1e-12)


DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not a model": lambda text: "[1, 2]",
    "another threshold": lambda text: json.dumps(json.loads(text) | {"warning_threshold": 0.123}),
    "an input less": lambda text: json.dumps(
        json.loads(text) | {"inputs": json.loads(text)["inputs"][1:]}
    ),
    "no parameters": lambda text: json.dumps(json.loads(text) | {"parameters": {}}),
    "another algorithm": lambda text: json.dumps(json.loads(text) | {"algorithm": "oracle"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_damaged_model_is_refused_with_what_to_do(damage, algorithm):
    text = fitted(algorithm).model.to_json()
    with pytest.raises(MendableError, match="materialise trained_models/predictive_maintenance"):
        Model.from_json(DAMAGES[damage](text))


def test_a_model_with_broken_contents_under_a_matching_version_is_refused():
    model = fitted("baseline").model
    broken = Model(
        T, "pump", "baseline", 0.5, 60.0, model.inputs, {**model.parameters, "classifier": {}}
    )
    with pytest.raises(MendableError, match="KeyError"):
        Model.from_json(broken.to_json())


def test_reasons_begin_with_the_sensors_that_wear():
    model = fitted().model
    matrix = unseen().for_inputs(model.inputs)
    worst = np.argsort(-model.score(matrix).failure_probability)[:20]
    told = model.reasons(matrix[worst])
    assert all(1 <= len(words) <= 3 for words in told)
    first = [words[0].split()[0] for words in told]
    assert sum(name in ("temperature_c", "vibration_mm_s") for name in first) >= 18
    assert model.reasons(np.full((1, len(model.inputs)), np.nan))


def test_the_rule_without_a_champion_looks_at_the_sensor_furthest_away():
    rule = baseline_rule(SENSORS)
    assert rule.version == "baseline_rule"
    matrix = np.array([[0.0, 1.0, np.nan], [0.0, -6.0, 2.0], [np.nan] * 3])
    told = rule.score(matrix)
    np.testing.assert_allclose(told.failure_probability, [1 / 37, 0.5, 0])
    assert np.isnan(told.remaining_hours).all()
    assert rule.reasons(matrix)[1][0].startswith("temperature_c is 6.0 standard deviations below")
    assert rule.reasons(matrix)[2] == ["many small signs"]
    assert baseline_rule([]).score(np.empty((2, 0))).failure_probability.tolist() == [0, 0]


# ---------------------------------------------------------------- pictures


def test_pictures_are_drawn_of_machines_the_fleet_and_the_models():
    model = fitted().model
    told = model.score(unseen().for_inputs(model.inputs))
    rows = unseen().rows
    is_open, found = warnings_of(
        rows, told.failure_probability, np.full(rows.height, model.warning_threshold), POLICY
    )
    backtest = rows.select(
        "machine_id", "as_of_at", "label", "is_censored",
        observed_remaining_hours="remaining_hours",
        algorithm=pl.lit("lightgbm"), is_champion=pl.lit(True),
    ).with_columns(**{name: pl.Series(v) for name, v in zip(told._fields, told, strict=True)})  # fmt: skip
    warnings = pl.DataFrame(
        [(w.machine_id, w.opened_at, w.closed_at) for w in found],
        schema={"machine_id": pl.String, "opened_at": pl.Datetime("us"), "closed_at": pl.Datetime("us")},
        orient="row",
    )  # fmt: skip
    failures = rows.select("machine_id", "failed_at").drop_nulls().unique()
    one = pl.col("machine_id") == "pump_03"
    distances = training_frame(machines=12, seed=99, preventive=0.0).filter(one)
    assert is_open.any()
    assert draw_machine(
        backtest.filter(one), distances, warnings.filter(one), failures.filter(one)["failed_at"].to_list()
    ).startswith(PNG)  # fmt: skip
    assert draw_machine(
        backtest.filter(one), distances.head(0), warnings.head(0), []
    ).startswith(PNG)  # fmt: skip
    assert draw_fleet(backtest, warnings, failures).startswith(PNG)
    assert draw_fleet(backtest.head(1), warnings.head(0), failures.head(0)).startswith(PNG)
    assert draw_calibration(backtest).startswith(PNG)
    assert draw_remaining_life(backtest).startswith(PNG)
    assert draw_remaining_life(backtest.head(0)).startswith(PNG)


def test_the_table_of_models_shows_what_simpler_ones_get():
    row = {
        "as_of_at": T, "machine_model": "pump", "algorithm": "baseline", "is_champion": True,
        "training_failures": 12, "remaining_hours_rmse": 18.09, "mean_life_rmse": 36.1,
        "remaining_hours_rmse_all": None, "interval_coverage": 0.8, "average_precision": None,
        "calibration_error": 0.01, "warning_threshold": 0.4,
    }  # fmt: skip
    last = models_table(pl.DataFrame([row])).splitlines()[-1]
    assert last == (
        "| 2025-02-01 | pump | linear baseline (champion) | 12 | 18.1 | 36.1 |  | 0.8 |  | 0.01 | 0.4 |"
    )


def test_the_month_after_december_is_january():
    assert next_month(datetime(2024, 12, 5, 3)) == datetime(2025, 1, 1)
