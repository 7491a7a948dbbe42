"""The trained models of fraud detection: every week's champion and baseline, and what they would have said."""

import hashlib
from collections.abc import Iterator
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

    from orchestration.learning.fraud_detection import Model, Week

TRAINING_SET = "training_sets/train_fraud_detection"
INVESTIGATION = "seeds/fraud_investigation"
MODEL = dg.AssetKey(["trained_models", "fraud_detection"])
BACKTEST = dg.AssetKey(["predictions", "fraud_backtest"])
MODEL_TABLE, BACKTEST_TABLE = ".".join(MODEL.path), ".".join(BACKTEST.path)
LEARNING = code_version("learning/fraud_detection.py")
COMMON: dict[str, Any] = {
    "deps": [TRAINING_SET.split("/"), INVESTIGATION.split("/")],
    "group_name": "fraud_detection",
    "owners": ["team:payments-risk"],
    "kinds": {"lightgbm", "scikitlearn", "polars"},
    "code_version": code_version(
        "learning/fraud_detection.py",
        "learning/fraud_detection_plots.py",
        "contracts/fraud_detection.py",
    ),
}


@dg.multi_asset(
    name="train_fraud_detection",
    specs=[
        dg.AssetSpec(
            MODEL,
            description="Two trained models per week, LightGBM and a logistic regression, as of Monday"
            " 00:00. A row holds the model (JSON), what it learned from and how well it did in the"
            " following week. A week is trained again only if its rows or the code have changed.",
            tags={"layer": "trained_models"},
            metadata={"dagster/table_name": f"lake.{MODEL_TABLE}"},
            **COMMON,
        ),
        dg.AssetSpec(
            BACKTEST,
            description="The labelled payments of each test week with the scores of that week's models;"
            " cards already known to be compromised are left out.",
            tags={"layer": "predictions"},
            metadata={"dagster/table_name": f"lake.{BACKTEST_TABLE}"},
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
            "beats_baseline",
            asset=MODEL,
            description="LightGBM's mean average precision over the last four tested weeks is higher"
            " than the logistic regression's.",
        ),
    ],
)
def train_fraud_detection(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
    """Train what is new, week by week; one transaction writes a week's models and backtest."""
    from orchestration.contracts.fraud_detection import BACKTEST as BACKTEST_FRAME
    from orchestration.contracts.fraud_detection import TRAINING_FRAME
    from orchestration.learning.fraud_detection import FOLDS, test_rows, training_rows, weeks
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import current_snapshot, read_frame

    settings = load_settings()
    with raise_as_failure(), connect(settings) as connection:
        snapshot = current_snapshot(connection)
        table = f"{TRAINING_SET.replace('/', '.')} at (version => {snapshot})"
        first, last = read_frame(
            connection, f"select min(as_of_at), max(as_of_at) from {table}"
        ).row(0)
        planned = weeks(first, last) if first is not None else []
        cards_per_day = _cards_per_day(connection)
        _remove_other_weeks(connection, settings, [week.as_of_at for week in planned])
        history: dict[datetime, tuple[float | None, float | None]] = {}
        trained = skipped = 0
        for week in planned:
            frame = read_frame(
                connection,
                f"select * from {table} where as_of_at >= ? and as_of_at < ?"
                " order by as_of_at, transaction_id",
                [week.trained_from, week.tested_until],
            )
            if broken := broken_promises(TRAINING_FRAME, frame):
                yield from _broken(MODEL, "training_frame_matches_contract", week, broken)
            training, tested = training_rows(frame, week), test_rows(frame, week)
            frauds = int(training["label"].sum())
            if min(frauds, training.height - frauds) < FOLDS:
                context.log.warning(
                    f"{week.as_of_at:%Y-%m-%d}: not trained, {frauds} frauds to learn from"
                )
                _remove_week(connection, settings, week.as_of_at)
                skipped += 1
                continue
            rows, scored, fitted = _week(
                connection, week, training, tested, history, snapshot, cards_per_day
            )
            precision = dict(rows.select("algorithm", "average_precision").iter_rows())
            history[week.as_of_at] = precision["lightgbm"], precision["logistic_regression"]
            if scored is None:
                continue
            if broken := broken_promises(BACKTEST_FRAME, scored):
                yield from _broken(BACKTEST, "matches_contract", week, broken)
            _replace_week(connection, settings, week.as_of_at, rows, scored)
            trained += fitted
            context.log.info(f"{week.as_of_at:%Y-%m-%d}: {_told(precision)}")
        models = read_frame(
            connection,
            f"select * exclude parameters from {MODEL_TABLE} order by as_of_at, algorithm",
        )
        yield dg.AssetCheckResult(
            asset_key=MODEL, check_name="training_frame_matches_contract", passed=True,
            metadata={"weeks": len(planned)},
        )  # fmt: skip
        yield dg.AssetCheckResult(
            asset_key=BACKTEST, check_name="matches_contract", passed=True,
            metadata={"weeks": len(history)},
        )  # fmt: skip
        yield _beats_baseline(history)
        tested_weeks = models.drop_nulls("average_precision")["as_of_at"].to_list()
        yield dg.MaterializeResult(
            asset_key=MODEL,
            metadata={
                "models_trained_now": trained,
                "weeks_with_too_few_frauds": skipped,
                "weeks": _weeks_table(models),
                **_champion(models),
                **_table_metadata(connection, MODEL),
            },
        )
        yield dg.MaterializeResult(
            asset_key=BACKTEST,
            metadata={
                **_pictures(connection, tested_weeks, cards_per_day),
                **_table_metadata(connection, BACKTEST),
            },
        )


def _broken(
    key: dg.AssetKey, check: str, week: "Week", broken: list[str]
) -> Iterator[dg.AssetCheckResult]:
    monday = f"{week.as_of_at:%Y-%m-%d}"
    yield dg.AssetCheckResult(
        asset_key=key, check_name=check, passed=False, metadata={"week": monday, "broken": broken}
    )
    raise dg.Failure(
        f"the week of {monday} does not hold its contract: {broken}", allow_retries=False
    )


def _cards_per_day(connection: "duckdb.DuckDBPyConnection") -> int:
    from orchestration.errors import MendableError
    from orchestration.warehouse.frames import read_frame

    table = INVESTIGATION.replace("/", ".")
    found = read_frame(connection, f"select cards_per_day from {table}")["cards_per_day"].to_list()
    if len(found) != 1:
        raise MendableError(
            f"{INVESTIGATION}.csv",
            expected="one row: what the investigators can do in a day",
            arrived=f"{len(found)} rows",
            mend="leave one row in it, then make build",
        )
    return int(found[0])


def _week(
    connection: "duckdb.DuckDBPyConnection",
    week: "Week",
    training: "pl.DataFrame",
    tested: "pl.DataFrame",
    history: dict[datetime, tuple[float | None, float | None]],
    snapshot: int,
    cards_per_day: int,
) -> "tuple[pl.DataFrame, pl.DataFrame | None, int]":
    """The week's rows of both tables and how many models were fitted; no backtest if nothing changed."""
    import polars as pl

    from orchestration.learning.fraud_detection import (
        ALGORITHMS,
        evaluate,
        fit,
        matrix_of,
        recent,
    )

    # Only weeks whose test was labelled by then.
    champion = recent(
        [ap for at, ap in history.items() if (week.as_of_at - at).days >= 14]
    ).champion
    training_hash = _content_hash(training, cards_per_day)
    test_hash = _content_hash(tested, cards_per_day)
    stored = _stored(connection, week.as_of_at)
    kept: dict[str, Model] = {}
    if stored.height == len(ALGORITHMS) and set(stored["training_content_hash"]) == {training_hash}:
        unchanged = set(stored["test_content_hash"]) == {test_hash}
        if unchanged and stored.filter("is_champion")["algorithm"].to_list() == [champion]:
            return stored, None, 0
        kept = _models(stored)
    rows, scored = [], []
    for algorithm in ALGORITHMS:
        model = kept.get(algorithm) or fit(training, algorithm, cards_per_day, week.as_of_at)
        scores = model.score(matrix_of(tested))
        metrics = evaluate(tested, scores)
        rows.append(
            {
                "as_of_at": week.as_of_at,
                "algorithm": algorithm,
                "is_champion": algorithm == champion,
                "model_version": model.version,
                "parameters": model.to_json(),
                "alert_threshold": model.alert_threshold,
                "capacity_per_day": cards_per_day,
                "trained_from": week.trained_from,
                "trained_until": week.trained_until,
                "tested_from": week.tested_from,
                "tested_until": week.tested_until,
                "training_rows": training.height,
                "training_snapshot_id": snapshot,
                "training_content_hash": training_hash,
                "test_content_hash": test_hash,
                "auc_roc": metrics and metrics.auc_roc,
                "average_precision": metrics and metrics.average_precision,
                "card_precision_100": metrics and metrics.card_precision_100,
            }
        )
        scored.append(
            tested.select(
                pl.lit(week.as_of_at).cast(pl.Datetime("us")).alias("as_of_at"),
                pl.lit(algorithm).alias("algorithm"),
                "transaction_id",
                pl.col("as_of_at").alias("transaction_at"),
                "customer_id",
                "amount",
                pl.Series("score", scores, pl.Float64),
                "label",
            )
        )
    return (
        pl.DataFrame(rows, schema=_model_schema()),
        pl.concat(scored),
        len(ALGORITHMS) - len(kept),
    )


def _content_hash(frame: "pl.DataFrame", cards_per_day: int) -> str:
    """Of the code that learns and what it learns from."""
    import polars as pl

    from orchestration.learning.fraud_detection import matrix_of

    digest = hashlib.sha256(f"{LEARNING} {cards_per_day}".encode())
    digest.update(matrix_of(frame).tobytes())
    for column in ("transaction_id", "customer_id", "as_of_at", "label"):
        digest.update(frame[column].cast(pl.Int64).to_numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(connection: "duckdb.DuckDBPyConnection", as_of_at: datetime) -> "pl.DataFrame":
    from orchestration.warehouse.frames import read_frame

    return read_frame(connection, f"from {MODEL_TABLE} where as_of_at = ?", [as_of_at])


def _models(stored: "pl.DataFrame") -> "dict[str, Model]":
    """The stored models; none if one is damaged, which trains them again."""
    from orchestration.errors import MendableError
    from orchestration.learning.fraud_detection import Model

    try:
        return {
            a: Model.from_json(p) for a, p in stored.select("algorithm", "parameters").iter_rows()
        }
    except MendableError:
        return {}


def _model_schema() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us")
    return {
        "as_of_at": moment, "algorithm": pl.String, "is_champion": pl.Boolean,
        "model_version": pl.String, "parameters": pl.String, "alert_threshold": pl.Float64,
        "capacity_per_day": pl.Int32, "trained_from": moment, "trained_until": moment,
        "tested_from": moment, "tested_until": moment, "training_rows": pl.Int64,
        "training_snapshot_id": pl.Int64, "training_content_hash": pl.String,
        "test_content_hash": pl.String, "auc_roc": pl.Float64, "average_precision": pl.Float64,
        "card_precision_100": pl.Float64,
    }  # fmt: skip


def _replace_week(
    connection: "duckdb.DuckDBPyConnection",
    settings: Settings,
    as_of_at: datetime,
    rows: "pl.DataFrame",
    scored: "pl.DataFrame",
) -> None:
    from orchestration.warehouse.frames import replace_part

    replace_part(
        connection,
        settings,
        {MODEL_TABLE: rows, BACKTEST_TABLE: scored},
        where="as_of_at",
        equals=as_of_at,
    )


def _remove_week(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, as_of_at: datetime
) -> None:
    """Remove a week from both tables, which exist then."""
    import polars as pl

    from orchestration.contracts.fraud_detection import BACKTEST as CONTRACT

    scored = {name: column.dtype.type for name, column in CONTRACT.columns.items()}
    _replace_week(
        connection,
        settings,
        as_of_at,
        pl.DataFrame(schema=_model_schema()),
        pl.DataFrame(schema=scored),
    )


def _remove_other_weeks(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, planned: list[datetime]
) -> None:
    """Create both tables if they are missing; remove weeks whose payments are gone from the source."""
    from orchestration.warehouse.frames import read_frame, table_exists

    if not all(table_exists(connection, *key.path) for key in (MODEL, BACKTEST)):
        _remove_week(connection, settings, datetime(1970, 1, 1))
    stored = read_frame(connection, f"select distinct as_of_at from {MODEL_TABLE}")["as_of_at"]
    for as_of_at in sorted(set(stored) - set(planned)):
        _remove_week(connection, settings, as_of_at)


def _beats_baseline(
    history: dict[datetime, tuple[float | None, float | None]],
) -> dg.AssetCheckResult:
    from orchestration.learning.fraud_detection import recent

    means = recent(list(history.values()))
    return dg.AssetCheckResult(
        asset_key=MODEL,
        check_name="beats_baseline",
        passed=means.lightgbm > means.logistic_regression or not means.weeks,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "weeks_tested": means.weeks,
            "average_precision_lightgbm": means.lightgbm,
            "average_precision_logistic_regression": means.logistic_regression,
        },
    )


def _weeks_table(models: "pl.DataFrame") -> dg.MarkdownMetadataValue:
    """Both algorithms week by week."""
    lines = [
        f"| {as_of_at:%Y-%m-%d} | {algorithm}{' (champion)' if champion else ''} | "
        + " | ".join("" if value is None else f"{value:.3f}" for value in metrics)
        + " |"
        for as_of_at, algorithm, champion, *metrics in models.select(
            "as_of_at",
            "algorithm",
            "is_champion",
            "auc_roc",
            "average_precision",
            "card_precision_100",
        ).iter_rows()
    ]
    head = [
        "| as of | algorithm | AUC ROC | average precision | card precision@100 |",
        "|---|---|---|---|---|",
    ]
    return dg.MetadataValue.md("\n".join([*head, *lines]))


def _champion(models: "pl.DataFrame") -> dict[str, Any]:
    in_force = models.filter("is_champion").sort("as_of_at").tail(1)
    if in_force.is_empty():
        return {"champion": "none yet: no week has a month of history and a week of labels"}
    return {
        "champion": in_force["model_version"][0],
        "alert_threshold": in_force["alert_threshold"][0],
    }


def _told(precision: dict[str, float | None]) -> str:
    learned, baseline = precision["lightgbm"], precision["logistic_regression"]
    if learned is None or baseline is None:
        return "trained; its test week has no labels yet"
    return f"average precision {learned:.3f}, logistic regression {baseline:.3f}"


def _pictures(
    connection: "duckdb.DuckDBPyConnection", tested_weeks: list[datetime], cards_per_day: int
) -> dict[str, dg.MarkdownMetadataValue]:
    """Precision-recall and saved-money curves of the newest week all of whose days have labels."""
    from orchestration.learning.fraud_detection_plots import draw_precision_recall, draw_saved_money
    from orchestration.warehouse.frames import read_frame

    if not tested_weeks:
        return {}
    whole = read_frame(
        connection,
        f"select as_of_at from {BACKTEST_TABLE} group by as_of_at"
        " having count(distinct cast(transaction_at as date)) = 7",
    )["as_of_at"].to_list()
    tested = read_frame(
        connection, f"from {BACKTEST_TABLE} where as_of_at = ?", [max(whole or tested_weeks)]
    )
    return {
        "precision_recall": picture(draw_precision_recall(tested), "precision and recall"),
        "saved_money": picture(
            draw_saved_money(tested, cards_per_day), "money saved by cards investigated"
        ),
    }


def _table_metadata(connection: "duckdb.DuckDBPyConnection", key: dg.AssetKey) -> dict[str, Any]:
    """Row count, columns and column lineage of one of the two tables."""
    from orchestration.learning.fraud_detection import FEATURES

    learned = [(TRAINING_SET, name) for name in (*FEATURES, "label")]
    week = [(TRAINING_SET, "as_of_at")]
    sources: dict[str, list[tuple[str, str]]] = {
        "as_of_at": week, "trained_from": week, "trained_until": week, "tested_from": week,
        "tested_until": week, "transaction_at": week, "algorithm": [],
        "capacity_per_day": [(INVESTIGATION, "cards_per_day")],
        "training_snapshot_id": [], "training_rows": [(TRAINING_SET, "transaction_id")],
        **{name: [(TRAINING_SET, name)] for name in ("transaction_id", "customer_id", "label")},
    }  # fmt: skip
    if key == BACKTEST:
        sources["amount"] = [(TRAINING_SET, "amount")]
    return table_metadata(connection, ".".join(key.path), sources, learned)
