"""The monthly training writes its three tables, trains only what is new, and says what it cannot train."""

from __future__ import annotations

from datetime import datetime

import dagster as dg  # noqa: TID251
import polars as pl
import pytest

from orchestration.build import prepare_manifest
from orchestration.learning import predictive_maintenance as learning
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame, replace_part
from tests.unit.learning.machines import POLICY, training_frame

FEBRUARY, MARCH = datetime(2025, 2, 1), datetime(2025, 3, 1)


def write(frame: pl.DataFrame, **policy: float) -> None:
    tables = {
        "training_sets.train_predictive_maintenance": frame,
        "seeds.maintenance_policy": pl.DataFrame(
            [{**POLICY.__dict__, **policy, "owner": "plant-reliability"}]
        ),
    }
    with connect(load_settings()) as connection:
        for table, rows in tables.items():
            connection.execute(f"drop table if exists {table}")
            first = rows.columns[0]
            replace_part(connection, load_settings(), {table: rows}, where=first, equals=None)


def build():
    """The materialisation's metadata, and the three tables."""
    from orchestration.defs.trained_models.predictive_maintenance import (
        MODEL,
        train_predictive_maintenance,
    )

    result = dg.materialize([train_predictive_maintenance])
    passed = {check.check_name for check in result.get_asset_check_evaluations() if check.passed}
    assert passed >= {"training_frame_matches_contract", "matches_contract"}
    events = result.asset_materializations_for_node("train_predictive_maintenance")
    metadata = {e.asset_key: e.metadata for e in events}
    with connect(load_settings(), read_only=True) as connection:
        models, backtest, warnings = (
            read_frame(connection, f"from {table} order by all")
            for table in (
                "trained_models.predictive_maintenance",
                "predictions.maintenance_backtest",
                "predictions.warning_backtest",
            )
        )
    return metadata, metadata[MODEL]["models_trained_now"].value, models, backtest, warnings


@pytest.fixture(autouse=True)
def _house(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERSHED_DATA_DIR", str(tmp_path))
    for name in ("classifier", "regressor"):
        monkeypatch.setitem(learning._ROUNDS, name, 20)
    prepare_manifest()


def test_a_month_is_trained_once_and_again_only_when_its_rows_or_the_policy_change():
    frame = training_frame(days=70)
    few = training_frame(machines=4, days=70, model="press")
    write(pl.concat([frame, few]))
    metadata, trained, models, backtest, warnings = build()
    assert trained == models.height == 4
    assert models["as_of_at"].unique().sort().to_list() == [FEBRUARY, MARCH]
    assert set(models["machine_model"]) == {"pump"}
    waiting = next(m["not_trained"].value for m in metadata.values() if "not_trained" in m)
    assert "press as of 2025-02-01: not trained" in waiting
    champions = models.filter("is_champion").group_by("as_of_at").len()
    assert champions["len"].to_list() == [1, 1]

    tested = frame.filter(pl.col("as_of_at") >= FEBRUARY).select("machine_id", "as_of_at").unique()
    assert backtest.height == 2 * tested.height
    assert backtest.filter("has_warning").height > 0
    pictured = next(m for m in metadata.values() if "fleet" in m)
    assert {"fleet", "machine", "remaining_life", "calibration"} <= set(pictured)

    # a warning is open in the backtest exactly from opening to closing
    opened = backtest.join(
        warnings.select("machine_id", "algorithm", as_of_at="opened_at"),
        on=["machine_id", "algorithm", "as_of_at"],
    )
    assert opened.height == warnings.height > 0
    assert opened["has_warning"].all()
    assert not warnings.select("algorithm", "warning_id").is_duplicated().any()
    assert set(warnings["closed_by"]) <= {"maintenance", "recovered", ""}
    assert warnings["reasons"].str.len_chars().min() > 0

    _, trained, again, _, _ = build()
    assert trained == 0
    assert again.equals(models)

    late = pl.col("as_of_at") == frame["as_of_at"].max()
    changed = frame.with_columns(
        deviation_avg_24h=pl.when(late).then(9.0).otherwise("deviation_avg_24h")
    )
    write(pl.concat([changed, few]))
    _, trained, retested, _, _ = build()
    assert trained == 0  # only the month that is tested has changed
    assert retested["model_version"].equals(models["model_version"])
    assert retested["test_content_hash"].n_unique() == 2
    assert not retested["test_content_hash"].equals(models["test_content_hash"])

    early = pl.col("as_of_at") == datetime(2025, 2, 10)
    write(
        frame.with_columns(
            deviation_avg_24h=pl.when(early).then(9.0).otherwise("deviation_avg_24h")
        )
    )
    _, trained, partly, _, _ = build()
    assert trained == 2  # March learns from it, February does not
    assert set(partly["model_version"]) & set(models["model_version"])

    write(frame, callout_cost=5000.0)
    assert build()[1] == 4


def test_machines_that_are_gone_leave_no_models_behind():
    write(training_frame(days=35))
    assert build()[2].height == 2
    write(training_frame(days=35).head(0))
    _, trained, models, backtest, warnings = build()
    assert (trained, models.height, backtest.height, warnings.height) == (0, 0, 0, 0)


def test_a_damaged_stored_model_is_trained_again():
    write(training_frame(days=35))
    models = build()[2]
    with connect(load_settings()) as connection:
        connection.execute("update trained_models.predictive_maintenance set parameters = '{}'")
    _, trained, again, _, _ = build()
    assert trained == 2
    assert again["parameters"].equals(models["parameters"])


def test_a_training_set_that_breaks_its_contract_stops_with_what_is_wrong():
    from orchestration.defs.trained_models.predictive_maintenance import (
        train_predictive_maintenance,
    )

    write(training_frame(days=35).with_columns(remaining_hours=pl.lit(-1.0)))
    result = dg.materialize([train_predictive_maintenance], raise_on_error=False)
    assert not result.success
    failed = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert [c.check_name for c in failed] == ["training_frame_matches_contract"]
    assert "remaining_hours" in str(failed[0].metadata["broken"])


@pytest.mark.parametrize("has_scores", [True, False])
def test_the_fleet_is_drawn_from_what_the_stream_said_and_late_scores_are_told(has_scores):
    from orchestration.defs.monitoring.predictive_maintenance import machine_fleet_report

    frame = training_frame(machines=3, days=20)
    health = frame.select("machine_id", "as_of_at").unique().with_columns(
        failure_probability=0.3, remaining_hours=None, remaining_hours_low=None,
        remaining_hours_high=None,
    ).cast({pl.Null: pl.Float64})  # fmt: skip
    first = frame["as_of_at"].min()
    one = {"machine_id": ["pump_01"]}
    tables = {
        "predictions.machine_health": health if has_scores else health.head(0),
        "predictions.machine_warnings": pl.DataFrame(
            {**one, "opened_at": [first], "closed_at": pl.Series([None], dtype=pl.Datetime("us"))}
        ),
        "staging.stg_plant_db__failures": pl.DataFrame({**one, "failed_at": [first]}),
        "features.feat_sensor__windows": frame,
        "monitoring.mon_predictive_maintenance__metrics": pl.DataFrame(
            {
                "as_of_at": [first],
                "metric": ["score_latency_p99_ms"],
                "value": [60.0],
                "is_met": [False],
            }
        ),
    }
    with connect(load_settings()) as connection:
        for table, rows in tables.items():
            replace_part(
                connection, load_settings(), {table: rows}, where=rows.columns[0], equals=None
            )
    result = dg.materialize([machine_fleet_report])
    (event,) = result.asset_materializations_for_node("monitoring__machine_fleet_report")
    drawn = {"fleet", "machine_most_likely_to_fail"}
    assert (drawn <= set(event.metadata)) == has_scores
    assert event.metadata["hours_scored"].value == (health.height if has_scores else 0)
    (check,) = result.get_asset_check_evaluations()
    assert check.passed == (not has_scores)
