"""The decisions: each new model against the one in force, on time that neither has learned from.

What is decided here takes effect when the build is released; see `registry/decisions.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from orchestration.defs.vocabulary import (
    broken_promises,
    code_version,
    raise_as_failure,
    rows_and_version,
    table_metadata,
)
from orchestration.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb

    from orchestration.learning.promotion import Trial, Verdict

RULES = "seeds/promotion_rules"


@dataclass(frozen=True)
class _Challenger:
    """A model that may be decided on: its row's facts, the time it is tested on, and its JSON when asked for."""

    version: str
    kind: str
    as_of_at: datetime
    tested_from: datetime
    tested_until: datetime


Connection = Any
MakeTrial = Callable[[Connection, _Challenger, Any, Any], "Trial"]
"""Connection, who, the challenger's model and the champion's (None without one) to a trial."""


def _decide(
    context: dg.AssetExecutionContext,
    connection: "duckdb.DuckDBPyConnection",
    settings: Settings,
    use_case: str,
    trial_of: MakeTrial,
) -> list[str]:
    """Try every model that nothing was decided on yet and whose test is over, the oldest first."""
    from orchestration.learning.promotion import attempt, rules_of
    from orchestration.registry import decisions
    from orchestration.registry.described import described
    from orchestration.warehouse.frames import read_frame

    of = described(use_case)
    rules = rules_of(
        read_frame(connection, f"from {RULES.replace('/', '.')}").iter_rows(named=True), use_case
    )
    decisions.prepare(connection, settings, use_case)
    champions = decisions.in_force(connection, settings, use_case)
    done = {
        one.model_version
        for one in decisions.read(connection, use_case)
        if one.action in ("promoted", "refused")
    }
    waiting, told = [], []
    for one in _challengers(connection, use_case, of.kind):
        before = champions.get(one.kind, "")
        if one.version == before or one.version in done:
            continue
        champion = model_of(connection, settings, use_case, before) if before else None
        if champion is not None and champion.as_of_at > one.as_of_at:
            continue  # it was trained on what it would be tested on
        if not _is_over(connection, one, use_case, first=champion is None):
            waiting.append(one.version)
            continue

        def trial(one: _Challenger = one, champion: Any = champion) -> "Trial":
            challenger = model_of(connection, settings, use_case, one.version)
            return trial_of(connection, one, challenger, champion)

        verdict: Verdict = attempt(trial, rules)
        after = one.version if verdict.promoted else before
        decisions.write(
            connection, settings, use_case,
            [
                decisions.Decision(
                    one.kind, "promoted" if verdict.promoted else "refused", one.version,
                    one.as_of_at if use_case == "customer_segmentation" and not before
                    else one.tested_until, before, after, verdict.reason, "build", verdict.as_rows(),
                )
            ],
        )  # fmt: skip
        if verdict.promoted:
            champions[one.kind] = one.version
        line = f"{one.version} {'promoted' if verdict.promoted else 'refused'}: {verdict.reason}"
        context.log.info(line)
        told.append(line)
    context.log.info(f"{len(told)} decided, {len(waiting)} wait for the end of their test")
    return told


def _challengers(
    connection: "duckdb.DuckDBPyConnection", use_case: str, kind: str
) -> list[_Challenger]:
    """The model of each period that its protocol chose, the oldest first."""
    where, tested = "where is_champion", "tested_from, tested_until"
    if use_case == "customer_segmentation":
        where, tested = "", "as_of_at, as_of_at + interval 1 month"
    rows = connection.execute(
        f"select model_version, {kind or chr(39) * 2}, as_of_at, {tested}"
        f" from trained_models.{use_case} {where} order by as_of_at, 2, 1"
    ).fetchall()
    return [_Challenger(*row) for row in rows]


def _is_over(
    connection: "duckdb.DuckDBPyConnection", one: _Challenger, use_case: str, *, first: bool
) -> bool:
    """Whether the labels of a challenger's test are there to its last day."""
    if use_case == "customer_segmentation":
        ((known,),) = connection.execute(
            "select count(*) from training_sets.train_customer_segmentation where as_of_at = ?",
            [one.tested_until],
        ).fetchall()
        return first or known > 0
    ((newest,),) = connection.execute(
        f"select max(as_of_at) from training_sets.train_{use_case}"
    ).fetchall()
    return newest is not None and newest >= one.tested_until - timedelta(days=1)


def model_of(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, use_case: str, version: str
) -> Any:
    """A model from the warehouse, or from the registry if training has replaced it there since."""
    from orchestration.registry import store
    from orchestration.registry.described import described

    found = connection.execute(
        f"select any_value(parameters) from trained_models.{use_case} where model_version = ?",
        [version],
    ).fetchone()
    text = str(found[0]) if found and found[0] is not None else ""
    if not text:
        _, one = store.find(settings, version)
        text = store.parameters_of(settings, use_case, one)
    return described(use_case).load(text)


def _fraud(connection: Connection, one: _Challenger, challenger: Any, champion: Any) -> "Trial":
    from orchestration.contracts.fraud_detection import BACKTEST
    from orchestration.defs.trained_models.fraud_detection import _cards_per_day
    from orchestration.learning.fraud_detection import BaselineRule, Week, test_rows
    from orchestration.learning.trials import fraud_trial
    from orchestration.warehouse.frames import read_frame

    week = Week(one.as_of_at)
    frame = read_frame(
        connection,
        "from training_sets.train_fraud_detection where as_of_at >= ? and as_of_at < ?",
        [week.trained_from, week.tested_until],
    )
    return fraud_trial(
        challenger, champion or BaselineRule(), test_rows(frame, week), _cards_per_day(connection),
        lambda scores: broken_promises(BACKTEST, scores), is_first=champion is None,
    )  # fmt: skip


def _machines(connection: Connection, one: _Challenger, challenger: Any, champion: Any) -> "Trial":
    from orchestration.defs.trained_models.predictive_maintenance import (
        TRAINING_SET,
        _policy,
        _training_frame,
    )
    from orchestration.learning.machine_health import baseline_rule
    from orchestration.learning.predictive_maintenance import hours_of
    from orchestration.learning.trials import machine_trial

    frame = _training_frame(connection, TRAINING_SET.replace("/", "."), one.kind)
    hours = hours_of(frame).between(one.tested_from, one.tested_until)
    rule = baseline_rule(sorted(frame["sensor"].unique().to_list()))
    return machine_trial(
        challenger, champion or rule, hours, _policy(connection), is_first=champion is None
    )


def _segments(connection: Connection, one: _Challenger, challenger: Any, champion: Any) -> "Trial":
    import numpy as np

    from orchestration.contracts.customer_segmentation import SEGMENTS
    from orchestration.defs.trained_models.customer_segmentation import training_frame
    from orchestration.learning.customer_segmentation import predict
    from orchestration.learning.promotion import LEAST_BLOCKS, Pair, Trial
    from orchestration.learning.trials import segment_trial

    def contract(scores: Any) -> list[str]:
        return broken_promises(SEGMENTS, scores)

    _, learned = training_frame(connection, one.as_of_at)
    if champion is None:  # nothing to compare with: its groups must be some at all
        ((silhouette,),) = connection.execute(
            "select silhouette from trained_models.customer_segmentation where model_version = ?",
            [one.version],
        ).fetchall()
        all_in_one = np.zeros(LEAST_BLOCKS)
        return Trial(
            {
                "silhouette": Pair(all_in_one + silhouette, all_in_one),
                "households_kept_share": Pair(all_in_one, all_in_one),
            },
            {}, {}, contract(predict(challenger, learned)), is_first=True,
        )  # fmt: skip
    _, frame = training_frame(connection, one.tested_until)
    return segment_trial(challenger, champion, frame, predict(champion, learned), contract)


def _asset(use_case: str, owner: str, others: tuple[str, ...], trial_of: MakeTrial) -> Any:
    """The asset of a use case's decisions."""
    key = dg.AssetKey(["trained_models", f"{use_case}__decisions"])
    trained = f"trained_models/{use_case}"
    training_set = f"training_sets/train_{use_case}"

    @dg.asset(
        key=key,
        deps=[one.split("/") for one in (trained, training_set, RULES, *others)],
        group_name=use_case,
        owners=[owner],
        kinds={"polars", "mlflow"},
        tags={"layer": "trained_models"},
        code_version=code_version("defs/trained_models/decisions.py", "registry/decisions.py"),
        description="Which model takes over, and why: every new model has a trial against the one in"
        " force, on time that neither has learned from, by the rules of seeds/promotion_rules.csv. People's"
        " promotions and ways back stand here too, at once. A decision takes effect with the release.",
        metadata={"dagster/table_name": f"lake.{'.'.join(key.path)}"},
        check_specs=[
            dg.AssetCheckSpec(
                "has_one_champion",
                asset=key,
                blocking=True,
                description="Decisions follow each other: each begins with the champion of the one before,"
                " and leaves exactly one in force.",
            )
        ],
    )
    def decide(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        settings = load_settings()
        from orchestration.warehouse.connect import connect

        with raise_as_failure(), connect(settings) as connection:
            told = _decide(context, connection, settings, use_case, trial_of)
            table = ".".join(key.path)
            ((without,),) = connection.execute(
                f"select count(*) from {table} where action in ('promoted', 'rolled_back')"
                " and champion_after <> model_version"
            ).fetchall()
            yield dg.AssetCheckResult(
                check_name="has_one_champion",
                passed=without == 0,
                metadata={"decisions_that_leave_none": without},
            )
            sources: Mapping[str, list[tuple[str, str]]] = {
                "reason": [(RULES, "margin"), (trained, "parameters"), (training_set, "label")]
                if use_case != "customer_segmentation"
                else [(RULES, "margin"), (trained, "parameters")],
                "kind": [], "use_case": [], "decided_at": [], "decided_by": [], "decision_number": [],
            }  # fmt: skip
            yield dg.MaterializeResult(
                data_version=rows_and_version(connection, table)[1],
                metadata={
                    "decided_now": dg.MetadataValue.md("\n".join(f"- {x}" for x in told) or "none"),
                    **table_metadata(connection, table, sources, [(trained, "model_version")]),
                },
            )

    return decide


fraud_detection__decisions = _asset(
    "fraud_detection", "team:payments-risk", ("seeds/fraud_investigation",), _fraud
)
predictive_maintenance__decisions = _asset(
    "predictive_maintenance", "team:plant-reliability", ("seeds/maintenance_policy",), _machines
)
customer_segmentation__decisions = _asset(
    "customer_segmentation", "team:marketing-analytics", (), _segments
)
