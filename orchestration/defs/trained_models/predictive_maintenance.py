"""The trained models of predictive maintenance: every month's champion and baseline, and what they would have said."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.defs.vocabulary import (
    broken_promises,
    code_version,
    picture,
    raise_as_failure,
    table_metadata,
)
from orchestration.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from orchestration.learning.machine_health import Algorithm, Model
    from orchestration.learning.predictive_maintenance import Hours
    from orchestration.learning.warning_states import Policy

TRAINING_SET = "training_sets/train_predictive_maintenance"
POLICY = "seeds/maintenance_policy"
MODEL = dg.AssetKey(["trained_models", "predictive_maintenance"])
BACKTEST = dg.AssetKey(["predictions", "maintenance_backtest"])
WARNINGS = dg.AssetKey(["predictions", "warning_backtest"])
MODEL_TABLE, BACKTEST_TABLE, WARNING_TABLE = (
    ".".join(key.path) for key in (MODEL, BACKTEST, WARNINGS)
)
LEARNING = code_version(
    "learning/predictive_maintenance.py", "learning/machine_health.py", "learning/warning_states.py"
)
COMMON: dict[str, Any] = {
    "deps": [TRAINING_SET.split("/"), POLICY.split("/")],
    "group_name": "predictive_maintenance",
    "owners": ["team:plant-reliability"],
    "kinds": {"lightgbm", "scikitlearn", "polars"},
    "code_version": code_version(
        "learning/predictive_maintenance.py",
        "learning/predictive_maintenance_plots.py",
        "learning/warning_states.py",
        "contracts/predictive_maintenance.py",
    ),
}


@dg.multi_asset(
    name="train_predictive_maintenance",
    specs=[
        dg.AssetSpec(
            MODEL,
            description="Two trained models per month and model of machine, LightGBM and a linear"
            " baseline, as of the first of the month. A row holds the model (JSON), what it learned from"
            " and how well it did in that month. It is trained again only if its rows, the policy or the"
            " code have changed.",
            tags={"layer": "trained_models"},
            metadata={"dagster/table_name": f"lake.{MODEL_TABLE}"},
            **COMMON,
        ),
        dg.AssetSpec(
            BACKTEST,
            description="Every machine-hour of the tested months with what that month's models say of it:"
            " failure probability, remaining life and its 80 % interval.",
            tags={"layer": "predictions"},
            metadata={"dagster/table_name": f"lake.{BACKTEST_TABLE}"},
            **COMMON,
        ),
        dg.AssetSpec(
            WARNINGS,
            description="The warnings that would have been opened and closed in the tested months, with"
            " the sensors that caused them; the steps are the stream's.",
            tags={"layer": "predictions"},
            metadata={"dagster/table_name": f"lake.{WARNING_TABLE}"},
            **COMMON,
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "training_frame_matches_contract",
            asset=MODEL,
            blocking=True,
            description="What went into the fits holds the pandera contract TRAINING_FRAME.",
        ),
        dg.AssetCheckSpec(
            "matches_contract",
            asset=BACKTEST,
            blocking=True,
            description="What came out of the models holds the pandera contract BACKTEST.",
        ),
        dg.AssetCheckSpec(
            "matches_contract",
            asset=WARNINGS,
            blocking=True,
            description="The warnings that came of it hold the pandera contract WARNINGS.",
        ),
        dg.AssetCheckSpec(
            "beats_baseline",
            asset=MODEL,
            description="LightGBM's remaining life is closer to the truth than the baseline's: mean RMSE"
            " of all hours over the last three tested months.",
        ),
    ],
)
def train_predictive_maintenance(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Train what is new, one model of machine after the other; one transaction writes all of its rows."""
    from orchestration.contracts.predictive_maintenance import BACKTEST as BACKTEST_FRAME
    from orchestration.contracts.predictive_maintenance import TRAINING_FRAME
    from orchestration.contracts.predictive_maintenance import WARNINGS as WARNING_FRAME
    from orchestration.learning.predictive_maintenance import hours_of
    from orchestration.learning.predictive_maintenance_plots import models_table
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import current_snapshot, read_frame, replace_part

    settings = load_settings()
    with raise_as_failure(), connect(settings) as connection:
        snapshot = current_snapshot(connection)
        policy = _policy(connection)
        table = f"{TRAINING_SET.replace('/', '.')} at (version => {snapshot})"
        kinds = read_frame(connection, f"select distinct machine_model from {table} order by 1")
        machine_models = kinds["machine_model"].to_list()
        _remove_other_models(connection, settings, machine_models)
        trained, waiting = 0, []
        for machine_model in machine_models:
            frame = _training_frame(connection, table, machine_model)
            if broken := broken_promises(TRAINING_FRAME, frame):
                yield from _broken(MODEL, "training_frame_matches_contract", machine_model, broken)
            hours = hours_of(frame)
            del frame
            stored = read_frame(
                connection,
                f"from {MODEL_TABLE} where machine_model = ? order by as_of_at, algorithm",
                [machine_model],
            )
            models, rows, fitted, reasons = _months(hours, machine_model, policy, stored, snapshot)
            waiting += reasons
            for reason in reasons:
                context.log.warning(reason)
            if rows.equals(stored):
                continue
            backtest, warnings = _backtest(hours, machine_model, policy, models, rows)
            if broken := broken_promises(BACKTEST_FRAME, backtest):
                yield from _broken(BACKTEST, "matches_contract", machine_model, broken)
            if broken := broken_promises(WARNING_FRAME, warnings):
                yield from _broken(WARNINGS, "matches_contract", machine_model, broken)
            replace_part(
                connection,
                settings,
                {MODEL_TABLE: rows, BACKTEST_TABLE: backtest, WARNING_TABLE: warnings},
                where="machine_model",
                equals=machine_model,
            )
            trained += fitted
            context.log.info(
                f"{machine_model}: {fitted} models trained, {backtest.height:,} hours tested"
            )
        every = read_frame(
            connection,
            f"select * exclude parameters from {MODEL_TABLE} order by as_of_at, machine_model, algorithm desc",
        )
        yield dg.AssetCheckResult(
            asset_key=MODEL, check_name="training_frame_matches_contract", passed=True,
            metadata={"machine_models": len(machine_models)},
        )  # fmt: skip
        for key in (BACKTEST, WARNINGS):
            yield dg.AssetCheckResult(
                asset_key=key, check_name="matches_contract", passed=True,
                metadata={"machine_models": len(machine_models)},
            )  # fmt: skip
        yield _beats_baseline(every)
        yield dg.MaterializeResult(
            asset_key=MODEL,
            metadata={
                "models_trained_now": trained,
                "not_trained": dg.MetadataValue.md("\n".join(f"- {r}" for r in waiting) or "none"),
                "models": dg.MetadataValue.md(models_table(every)),
                "champions": _champions(every),
                **_table_metadata(connection, MODEL),
            },
        )
        yield dg.MaterializeResult(
            asset_key=BACKTEST,
            metadata={**_pictures(connection), **_table_metadata(connection, BACKTEST)},
        )
        yield dg.MaterializeResult(
            asset_key=WARNINGS, metadata=_table_metadata(connection, WARNINGS)
        )


def _policy(connection: "duckdb.DuckDBPyConnection") -> "Policy":
    from orchestration.errors import MendableError
    from orchestration.learning.warning_states import policy_of
    from orchestration.warehouse.frames import read_frame

    rows = read_frame(connection, f"from {POLICY.replace('/', '.')}").to_dicts()
    if len(rows) != 1:
        raise MendableError(
            POLICY.replace("/", "."),
            expected="one row",
            arrived=f"{len(rows)} rows",
            mend="put seeds/maintenance_policy.csv right and build again",
        )
    return policy_of(rows[0].items())


def _training_frame(
    connection: "duckdb.DuckDBPyConnection", table: str, machine_model: str
) -> "pl.DataFrame":
    """The columns that are learned from, of one model of machine."""
    import polars as pl

    from orchestration.contracts.predictive_maintenance import TRAINING_FRAME
    from orchestration.warehouse.frames import read_frame

    columns = ", ".join(
        f"cast({name} as double) as {name}" if column.dtype.type == pl.Float64 else name
        for name, column in TRAINING_FRAME.columns.items()
    )
    return read_frame(
        connection,
        f"select {columns} from {table} where machine_model = ? order by machine_id, as_of_at, sensor",
        [machine_model],
    )


def _broken(
    key: dg.AssetKey, check: str, machine_model: str, broken: list[str]
) -> Iterator[dg.AssetCheckResult]:
    yield dg.AssetCheckResult(
        asset_key=key, check_name=check, passed=False,
        metadata={"machine_model": machine_model, "broken": broken},
    )  # fmt: skip
    raise dg.Failure(
        f"the machine-hours of {machine_model} do not hold their contract: {broken}",
        allow_retries=False,
    )


def _months(
    hours: "Hours", machine_model: str, policy: "Policy", stored: "pl.DataFrame", snapshot: int
) -> "tuple[dict[tuple[datetime, str], Model], pl.DataFrame, int, list[str]]":
    """Each month's models, their rows, how many were fitted, and why the rest were not."""
    import polars as pl

    from orchestration.learning.machine_health import ALGORITHMS
    from orchestration.learning.predictive_maintenance import (
        cannot_be_trained,
        champion_of,
        evaluate,
        fit,
        known_at,
        mean_life,
        months,
        next_month,
    )

    models: dict[tuple[datetime, str], Model] = {}
    rows: list[dict[str, Any]] = []
    waiting: list[str] = []
    fitted = 0
    first, last = hours.rows.select(first=pl.col("as_of_at").min(), last=pl.col("as_of_at").max()).row(0)  # fmt: skip
    for month in months(first, last):
        training = known_at(hours, month, policy)
        if reason := cannot_be_trained(training):
            waiting.append(f"{machine_model} as of {month:%Y-%m-%d}: not trained, {reason}")
            continue
        tested = hours.between(month, next_month(month))
        training_hash = _content_hash(training, policy)
        kept = _kept(stored, month, training_hash)
        brier: dict[Algorithm, float] = {}
        for algorithm in ALGORITHMS:
            if algorithm in kept:
                models[month, algorithm], brier[algorithm] = kept[algorithm][:2]
                continue
            found = fit(training, algorithm, machine_model, month, policy)
            models[month, algorithm], brier[algorithm] = found.model, found.brier_score
            fitted += 1
        run = training.for_inputs([("", "episode_hours")])[:, 0]
        for algorithm in sorted(ALGORITHMS):
            model = models[month, algorithm]
            health = model.score(tested.for_inputs(model.inputs))
            failed = training.rows.select("machine_id", "failed_at").drop_nulls().unique()
            rows.append(
                {
                    "as_of_at": month,
                    "machine_model": machine_model,
                    "algorithm": algorithm,
                    "is_champion": algorithm == champion_of(brier),
                    "model_version": model.version,
                    "parameters": model.to_json(),
                    "warning_threshold": model.warning_threshold,
                    "trained_from": training.rows["as_of_at"].min(),
                    "trained_until": month,
                    "tested_from": month,
                    "tested_until": next_month(month),
                    "training_machines": training.rows["machine_id"].n_unique(),
                    "training_failures": failed.height,
                    "training_rows": training.rows.height,
                    "training_snapshot_id": kept[algorithm][2] if algorithm in kept else snapshot,
                    "training_content_hash": training_hash,
                    "test_content_hash": _content_hash(tested, policy),
                    "out_of_fold_brier_score": brier[algorithm],
                    **asdict(evaluate(tested, health, policy, mean_life(training.rows, run))),
                }
            )
    return models, pl.DataFrame(rows, schema=_model_schema()), fitted, waiting


def _kept(
    stored: "pl.DataFrame", month: datetime, training_hash: str
) -> "dict[Algorithm, tuple[Model, float, int]]":
    """A month's stored models with their Brier scores and snapshots, if they learned from the same.

    None if one is damaged, which trains them again.
    """
    import polars as pl

    from orchestration.errors import MendableError
    from orchestration.learning.machine_health import Model

    same = stored.filter(
        (pl.col("as_of_at") == month) & (pl.col("training_content_hash") == training_hash)
    )
    try:
        return {
            algorithm: (Model.from_json(parameters), brier, snapshot)
            for algorithm, parameters, brier, snapshot in same.select(
                "algorithm", "parameters", "out_of_fold_brier_score", "training_snapshot_id"
            ).iter_rows()
        }
    except MendableError:
        return {}


def _backtest(
    hours: "Hours",
    machine_model: str,
    policy: "Policy",
    models: "Mapping[tuple[datetime, str], Model]",
    rows: "pl.DataFrame",
) -> "tuple[pl.DataFrame, pl.DataFrame]":
    """What each algorithm's models would have said, month after month, and the warnings opened."""
    import polars as pl

    from orchestration.learning.machine_health import ALGORITHMS

    champions = dict(
        rows.filter("is_champion").select("as_of_at", "algorithm").iter_rows()
    )  # month to algorithm
    parts = [
        _told_by(hours, machine_model, policy, models, champions, algorithm)
        for algorithm in ALGORITHMS
    ]
    return pl.concat(part for part, _ in parts), pl.concat(part for _, part in parts)


def _told_by(
    hours: "Hours",
    machine_model: str,
    policy: "Policy",
    models: "Mapping[tuple[datetime, str], Model]",
    champions: Mapping[datetime, str],
    algorithm: str,
) -> "tuple[pl.DataFrame, pl.DataFrame]":
    import numpy as np
    import polars as pl

    from orchestration.learning.machine_health import Health
    from orchestration.learning.predictive_maintenance import next_month, warnings_of

    at = hours.rows["as_of_at"]
    health = Health(*(np.full(len(at), np.nan) for _ in Health._fields))
    threshold, month_of = np.full(len(at), np.nan), np.full(len(at), -1)
    months = [month for month, name in models if name == algorithm]
    for number, month in enumerate(months):
        model = models[month, algorithm]
        tested = at.is_between(month, next_month(month), closed="left").to_numpy()
        told = model.score(hours.where(tested).for_inputs(model.inputs))
        for into, values in zip(health, told, strict=True):
            into[tested] = values
        threshold[tested], month_of[tested] = model.warning_threshold, number
    scored = month_of >= 0
    kept = hours.where(scored)
    month_of = month_of[scored]
    health = Health(*(values[scored] for values in health))
    is_open, found = warnings_of(kept.rows, health.failure_probability, threshold[scored], policy)
    versions = [models[month, algorithm].version for month in months]
    is_champion = [champions[month] == algorithm for month in months]
    backtest = kept.rows.select(
        "machine_id",
        "as_of_at",
        "machine_model",
        pl.lit(algorithm).alias("algorithm"),
        pl.Series("is_champion", [is_champion[n] for n in month_of], pl.Boolean),
        pl.Series("model_version", [versions[n] for n in month_of], pl.String),
        *(
            pl.Series(name, values, pl.Float64)
            for name, values in zip(Health._fields, health, strict=True)
        ),
        pl.Series("has_warning", is_open, pl.Boolean),
        "label",
        pl.col("remaining_hours").alias("observed_remaining_hours"),
        "is_censored",
    )
    warnings = [
        {
            "warning_id": warned.warning_id,
            "machine_id": warned.machine_id,
            "machine_model": machine_model,
            "algorithm": algorithm,
            "is_champion": is_champion[month_of[warned.row]],
            "model_version": versions[month_of[warned.row]],
            "opened_at": warned.opened_at,
            "closed_at": warned.closed_at,
            "closed_by": warned.closed_by,
            "failure_probability": float(health.failure_probability[warned.row]),
            "reasons": _reasons(kept, warned.row, models[months[month_of[warned.row]], algorithm]),
        }
        for warned in found
    ]
    return backtest, pl.DataFrame(warnings, schema=_warning_schema())


def _reasons(hours: "Hours", row: int, model: "Model") -> str:
    import numpy as np

    one: np.ndarray = hours.for_inputs(model.inputs)[row : row + 1]
    return "; ".join(model.reasons(one)[0])


def _content_hash(hours: "Hours", policy: "Policy") -> str:
    """Of the code that learns, the policy and the rows it learns from."""
    import polars as pl

    digest = hashlib.sha256(f"{LEARNING} {policy} {hours.inputs}".encode())
    digest.update(hours.matrix.tobytes())
    digest.update("\n".join(hours.rows["machine_id"]).encode())
    for column in ("as_of_at", "episode_number", "failed_at", "remaining_hours", "is_censored", "label"):  # fmt: skip
        digest.update(hours.rows[column].cast(pl.Float64).fill_null(-1.0).to_numpy().tobytes())
    return digest.hexdigest()[:16]


def _model_schema() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us")
    return {
        "as_of_at": moment, "machine_model": pl.String, "algorithm": pl.String,
        "is_champion": pl.Boolean, "model_version": pl.String, "parameters": pl.String,
        "warning_threshold": pl.Float64, "trained_from": moment, "trained_until": moment,
        "tested_from": moment, "tested_until": moment, "training_machines": pl.Int64,
        "training_failures": pl.Int64, "training_rows": pl.Int64,
        "training_snapshot_id": pl.Int64, "training_content_hash": pl.String,
        "test_content_hash": pl.String, "out_of_fold_brier_score": pl.Float64,
        "tested_hours": pl.Int64, "tested_failures": pl.Int64,
        "remaining_hours_rmse": pl.Float64, "remaining_hours_rmse_all": pl.Float64,
        "remaining_hours_mae": pl.Float64, "mean_life_rmse": pl.Float64,
        "interval_coverage": pl.Float64, "average_precision": pl.Float64,
        "brier_score": pl.Float64, "calibration_error": pl.Float64,
    }  # fmt: skip


def _warning_schema() -> dict[str, Any]:
    import polars as pl

    return {
        "warning_id": pl.String, "machine_id": pl.String, "machine_model": pl.String,
        "algorithm": pl.String, "is_champion": pl.Boolean, "model_version": pl.String,
        "opened_at": pl.Datetime("us"), "closed_at": pl.Datetime("us"), "closed_by": pl.String,
        "failure_probability": pl.Float64, "reasons": pl.String,
    }  # fmt: skip


def _remove_other_models(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, machine_models: list[str]
) -> None:
    """Create the tables if one is missing; remove models of machines that are gone from the source."""
    import polars as pl

    from orchestration.contracts.predictive_maintenance import BACKTEST as CONTRACT
    from orchestration.warehouse.frames import read_frame, replace_part, table_exists

    gone = [""]
    if all(table_exists(connection, *key.path) for key in (MODEL, BACKTEST, WARNINGS)):
        stored = read_frame(connection, f"select distinct machine_model from {MODEL_TABLE}")
        gone = sorted(set(stored["machine_model"]) - set(machine_models))
    scored = {name: column.dtype.type for name, column in CONTRACT.columns.items()}
    scored["as_of_at"] = pl.Datetime("us")
    for machine_model in gone:
        replace_part(
            connection,
            settings,
            {
                MODEL_TABLE: pl.DataFrame(schema=_model_schema()),
                BACKTEST_TABLE: pl.DataFrame(schema=scored),
                WARNING_TABLE: pl.DataFrame(schema=_warning_schema()),
            },
            where="machine_model",
            equals=machine_model,
        )


def _beats_baseline(models: "pl.DataFrame") -> dg.AssetCheckResult:
    import polars as pl

    tested = models.drop_nulls("remaining_hours_rmse_all")
    recent = tested["as_of_at"].unique().sort().tail(3)
    mean = dict(
        tested.filter(pl.col("as_of_at").is_in(recent.to_list()))
        .group_by("algorithm")
        .agg(pl.col("remaining_hours_rmse_all").mean())
        .iter_rows()
    )
    return dg.AssetCheckResult(
        asset_key=MODEL,
        check_name="beats_baseline",
        passed=not mean or mean["lightgbm"] < mean["baseline"],
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "months_tested": len(recent),
            **{f"remaining_hours_rmse_all_{name}": value for name, value in mean.items()},
        },
    )


def _champions(models: "pl.DataFrame") -> dg.MarkdownMetadataValue:
    """The model in force for each model of machine."""
    import polars as pl

    newest = models.filter("is_champion").sort("as_of_at").group_by("machine_model").last()
    lines = [
        f"- {machine_model}: {version}, warns from {threshold:.2f}"
        for machine_model, version, threshold in newest.sort("machine_model")
        .select("machine_model", "model_version", pl.col("warning_threshold"))
        .iter_rows()
    ]
    return dg.MetadataValue.md("\n".join(lines) or "none yet: too few failures to learn from")


def _pictures(connection: "duckdb.DuckDBPyConnection") -> dict[str, dg.MarkdownMetadataValue]:
    """The fleet, one machine, calibration and remaining life, as the backtest has them."""
    import polars as pl

    from orchestration.learning.predictive_maintenance_plots import (
        draw_calibration,
        draw_fleet,
        draw_machine,
        draw_remaining_life,
    )
    from orchestration.warehouse.frames import read_frame

    backtest = read_frame(
        connection, f"from {BACKTEST_TABLE} order by algorithm, machine_id, as_of_at"
    )
    champion = backtest.filter("is_champion")
    if champion.is_empty():
        return {}
    warnings = read_frame(connection, f"from {WARNING_TABLE} where is_champion order by opened_at")
    failures = read_frame(
        connection,
        f"select distinct machine_id, failed_at from {TRAINING_SET.replace('/', '.')}"
        " where failed_at between ? and ? order by all",
        list(champion.select(a=pl.col("as_of_at").min(), b=pl.col("as_of_at").max()).row(0)),
    )
    machine = _machine_to_show(champion, warnings, failures)
    of_it = pl.col("machine_id") == machine
    health = champion.filter(of_it)
    distances = read_frame(
        connection,
        "select as_of_at, sensor, deviation_distance_24h"
        f" from {TRAINING_SET.replace('/', '.')} where machine_id = ? and as_of_at >= ?",
        [machine, health["as_of_at"].min()],
    )
    failed_at = failures.filter(of_it)["failed_at"].to_list()
    pictures = {
        "fleet": picture(draw_fleet(champion, warnings, failures), "the fleet at a glance"),
        "machine": picture(
            draw_machine(health, distances, warnings.filter(of_it), failed_at),
            "one machine's health over time",
        ),
        "remaining_life": picture(draw_remaining_life(backtest), "remaining life"),
    }
    if backtest["label"].count():
        pictures["calibration"] = picture(draw_calibration(backtest), "calibration")
    return pictures


def _machine_to_show(
    health: "pl.DataFrame", warnings: "pl.DataFrame", failures: "pl.DataFrame"
) -> str:
    """The machine with the most failures, then warnings: there is most to see."""
    import polars as pl

    machines = health.select(pl.col("machine_id").unique())
    for events, name in ((failures, "failures"), (warnings, "warnings")):
        counted = events.group_by("machine_id").agg(pl.len().alias(name))
        machines = machines.join(counted, on="machine_id", how="left")
    ranked = machines.fill_null(0).sort(
        "failures", "warnings", "machine_id", descending=[True, True, False]
    )
    return str(ranked["machine_id"][0])


def _table_metadata(connection: "duckdb.DuckDBPyConnection", key: dg.AssetKey) -> dict[str, Any]:
    """Row count, columns and column lineage of one of the three tables."""
    from orchestration.learning.machine_health import MACHINE_FEATURES, SENSOR_FEATURES

    names = (*SENSOR_FEATURES, *MACHINE_FEATURES, "label", "remaining_hours", "is_censored")
    learned = [(TRAINING_SET, name) for name in names]
    hour = [(TRAINING_SET, "as_of_at")]
    costs = [(POLICY, name) for name in ("callout_cost", "downtime_cost_per_hour", "horizon_hours")]
    sources: dict[str, list[tuple[str, str]]] = {
        **dict.fromkeys(
            ("as_of_at", "trained_from", "trained_until", "tested_from", "tested_until"), hour
        ),
        "algorithm": [],
        "training_snapshot_id": [],
        "training_rows": hour,
        "warning_threshold": [*learned, *costs],
        "machine_id": [(TRAINING_SET, "machine_id")],
        "machine_model": [(TRAINING_SET, "machine_model")],
        "training_machines": [(TRAINING_SET, "machine_id")],
        "training_failures": [(TRAINING_SET, "failed_at")],
        "tested_failures": [(TRAINING_SET, "failed_at")],
        "tested_hours": hour,
    }
    if key == BACKTEST:
        sources |= {name: [(TRAINING_SET, name)] for name in ("label", "is_censored")}
        sources["observed_remaining_hours"] = [(TRAINING_SET, "remaining_hours")]
    return table_metadata(connection, ".".join(key.path), sources, learned)
