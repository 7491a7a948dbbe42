"""The table `monitoring.alerts`: what opens, worsens and closes an alert, and who has been told of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchestration.alerting.sinks import SEVERITIES, Sink, SinkDownError
from orchestration.settings import Settings
from orchestration.warehouse.connect import transaction, writing
from orchestration.warehouse.frames import table_exists

if TYPE_CHECKING:
    import duckdb

TELL_AGAIN_AFTER = timedelta(days=7)
"""An alert that is still open is told again after so long."""

COLUMNS = {
    "alert_key": "varchar",
    "use_case": "varchar",
    "kind": "varchar",
    "severity": "varchar",
    "opened_at": "timestamp",
    "closed_at": "timestamp",
    "times_seen": "integer",
    "told_at": "timestamp",
    "told_to": "varchar",
    "what_happened": "varchar",
    "what_it_means": "varchar",
    "what_to_do": "varchar",
}
_DRIFT = """
    select
        'drift/{use_case}/' || subject || '/' || feature as alert_key,
        '{use_case}' as use_case,
        case when feature in ('calibration', 'squared_error') then 'decay' else 'drift' end as kind,
        'warning' as severity,
        trim(subject || ' ' || feature) || ' has drifted: ' || string_agg(
            statistic || ' ' || printf('%.4g', reference_value) || ' -> ' || printf('%.4g', current_value),
            ', ' order by statistic
        ) as what_happened,
        case when feature in ('calibration', 'squared_error')
            then 'The model is wrong more often, or otherwise, than when it was chosen.'
            else 'The model sees or says something else than it learned from; its scores may be off.'
        end as what_it_means,
        'Look at monitoring.mon_{use_case}__drift; mend the source, or retrain if the world has changed.'
            as what_to_do
    from monitoring.mon_{use_case}__drift
    where is_drifted and as_of_at = (select max(as_of_at) from monitoring.mon_{use_case}__drift)
    group by subject, feature
"""
CONDITIONS = {
    "mon_fraud_detection__drift": _DRIFT.format(use_case="fraud_detection"),
    "mon_predictive_maintenance__drift": _DRIFT.format(use_case="predictive_maintenance"),
    "mon_customer_segmentation__drift": _DRIFT.format(use_case="customer_segmentation"),
    "mon_landing__anomalies": """
        select
            'volume/' || table_name, 'system', 'volume', 'warning',
            table_name || ': ' || rows_count || ' rows on ' || tested_date || ', '
            || printf('%.0f', expected_rows_count) || ' expected',
            'Rows are missing or doubled; features, models and reports built on them are off.',
            'Ask the source''s owner; then: make reload table=' || replace(replace(table_name, 'raw.', ''), '__', '.')
        from monitoring.mon_landing__anomalies
        where is_anomalous
        union all
        select
            'freshness/' || table_name, 'system', 'freshness', 'warning',
            table_name || ' has had no new row for ' || printf('%.0f', silence_hours)
            || ' hours; the longest before was ' || printf('%.0f', longest_silence_hours),
            'What is built on it stands still: labels, features or reports are of the past.',
            'Ask the source''s owner whether it still delivers; then: make build'
        from monitoring.mon_landing__anomalies
        where is_stale
    """,
    "mon_metrics__current": """
        select
            case metric when 'parity_mismatches' then 'parity' when 'hours_since_landed' then 'freshness'
                else 'missed_target' end || '/' || use_case || '/' || metric,
            use_case,
            case metric when 'parity_mismatches' then 'parity' when 'hours_since_landed' then 'freshness'
                else 'missed_target' end,
            case metric when 'parity_mismatches' then 'critical' else 'warning' end,
            metric || ' is ' || printf('%.4g', value) || ', should be ' || replace(direction, '_', ' ')
            || ' ' || printf('%.4g', target),
            reason,
            'Ask ' || owner || '; the history is in monitoring, the target in seeds/metric_targets.csv.'
        from monitoring.mon_metrics__current
        where not is_met
        union all
        select
            'review_due/' || use_case || '/' || metric, use_case, 'review_due', 'info',
            'the target of ' || metric || ' was to be reviewed on ' || review_on,
            'A target that nobody has looked at since may no longer be what the business needs.',
            owner || ' decides anew: target, decided_on and review_on in seeds/metric_targets.csv.'
        from monitoring.mon_metrics__current
        where is_review_due
    """,
}
"""What is wrong, from the table that says so: the first four columns and the last three of `COLUMNS`."""


FROM_HISTORY = frozenset({"check_failed", "step_failed"})
"""The kinds that Dagster's history tells of, and no table."""


def conditions(
    connection: duckdb.DuckDBPyConnection,
    failed_checks: Sequence[str] = (),
    failed_steps: Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """Everything that is wrong now, a dict per alert; tables that are not built yet say nothing.

    Args:
        connection: a reading one.
        failed_checks: error-level checks that fail, `asset: check`.
        failed_steps: from `defs.history.failed_steps`: the step, and what mends it.

    Steps that the same thing mends have one cause and are one alert, as are the checks of one asset.
    """
    names = [*list(COLUMNS)[:4], *list(COLUMNS)[-3:]]
    found = []
    for table, sql in CONDITIONS.items():
        if table_exists(connection, "monitoring", table):
            rows = connection.execute(sql).fetchall()
            found += [dict(zip(names, row, strict=True)) for row in rows]
    by_asset: dict[str, list[str]] = {}
    for check in failed_checks:
        asset, _, name = check.partition(": ")
        by_asset.setdefault(asset, []).append(name)
    for asset, checks in by_asset.items():
        values = (
            f"check_failed/{asset}", "system", "check_failed", "critical",
            f"{_listed('the check', checks)} of {asset} failed",
            "Nothing is released until it passes; readers keep the release before.",
            "Its page in make ui shows the rows that break it; mend them, then: make build",
        )  # fmt: skip
        found.append(dict(zip(names, values, strict=True)))
    by_mend: dict[str, list[str]] = {}
    for step, mend in (failed_steps or {}).items():
        by_mend.setdefault(mend or step, []).append(step)
    for mend, steps in by_mend.items():
        values = (
            f"step_failed/{mend}", "system", "step_failed", "critical",
            f"{_listed('the step', steps)} failed",
            "What it builds, and all that is made of it, stays as it was; the champion keeps serving.",
            mend if mend != steps[0] else "Its run in make ui shows why; mend that, then: make build",
        )  # fmt: skip
        found.append(dict(zip(names, values, strict=True)))
    return found


def _listed(what: str, names: Sequence[str]) -> str:
    """`the step a`, or `3 steps (a, b, c)`."""
    if len(names) == 1:
        return f"{what} {names[0]}"
    return f"{len(names)} {what.removeprefix('the ')}s ({', '.join(names)})"


def ensure_table(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Create `monitoring.alerts`, empty, if it is not there."""
    if not table_exists(connection, "monitoring", "alerts"):
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        with writing(settings, "creating monitoring.alerts"), transaction(connection):
            connection.execute("create schema if not exists monitoring")
            connection.execute(f"create table if not exists monitoring.alerts ({columns})")


def watch(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    wrong: Sequence[dict[str, str]],
    sinks: Sequence[Sink],
    now: datetime,
    *,
    keep_kinds: Collection[str] = (),
) -> list[str]:
    """Open, worsen and close alerts as `wrong` says, and tell the sinks what they have not been told.

    A sink that is down keeps nobody else from being told; it is told at the next call. So a sink hears of
    an alert when it opens, when it gets worse, and again after a week, once each.

    Args:
        connection: a writing one.
        settings: which warehouse.
        wrong: from `conditions`.
        sinks: from `sinks_of`.
        now: naive UTC.
        keep_kinds: those that `wrong` knows nothing about, so that their alerts stay open.

    Returns:
        The sinks that are down, each with the kind of error.
    """
    ensure_table(connection, settings)
    before = connection.execute("from monitoring.alerts where closed_at is null").fetchall()
    known = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in before}
    present = {one["alert_key"]: one for one in wrong}
    changed: dict[str, dict[str, Any]] = {}
    for key, one in present.items():
        if (old := known.get(key)) is None:
            changed[key] = {
                **dict.fromkeys(COLUMNS), **one, "opened_at": now, "times_seen": 1, "told_to": "",
            }  # fmt: skip
            continue
        again = SEVERITIES.index(one["severity"]) > SEVERITIES.index(old["severity"]) or (
            old["told_at"] is not None and now - old["told_at"] >= TELL_AGAIN_AFTER
        )
        # Once per build: the asset, which knows of no failed checks, does not count.
        changed[key] = {**old, **one, "times_seen": old["times_seen"] + (not keep_kinds)}
        if again:
            changed[key] |= {"told_to": "", "told_at": None}
    for key, old in known.items():
        if key not in present:
            if old["kind"] in keep_kinds:
                changed[key] = old
            else:
                changed[key] = {**old, "closed_at": now}
    down = _tell([one for one in changed.values() if one["closed_at"] is None], sinks, now)
    rows = [list(one.values()) for key, one in changed.items() if one != known.get(key)]
    if rows:
        keys = [row[0] for row in rows]
        marks = ", ".join("?" * len(COLUMNS))
        with writing(settings, "writing monitoring.alerts"), transaction(connection):
            connection.execute(
                "delete from monitoring.alerts where closed_at is null and list_contains(?, alert_key)",
                [keys],
            )
            connection.executemany(f"insert into monitoring.alerts values ({marks})", rows)
    return down


def _tell(alerts: list[dict[str, Any]], sinks: Sequence[Sink], now: datetime) -> list[str]:
    down = []
    for sink in sinks:
        untold = [
            one
            for one in alerts
            if sink.wants(one["severity"]) and sink.name not in one["told_to"].split()
        ]
        if not untold:
            continue
        try:
            sink.send([dict(one) for one in untold])
        except SinkDownError as error:
            down.append(f"{sink.name}: {error}")
            continue
        for one in untold:
            one["told_to"] = f"{one['told_to']} {sink.name}".strip()
            one["told_at"] = now
    return down


def watch_now(
    settings: Settings,
    failed_checks: Sequence[str] | None = None,
    failed_steps: Mapping[str, str] | None = None,
) -> list[str]:
    """Watch with everything that is wrong now, one caller at a time.

    Args:
        settings: which warehouse and sinks.
        failed_checks: as in `conditions`; None if the caller does not know, then what Dagster's
            history tells of stays as it is.
        failed_steps: as in `conditions`.

    Returns:
        The sinks that are down.
    """
    from datetime import UTC

    from filelock import FileLock

    from orchestration.alerting.sinks import sinks_of
    from orchestration.warehouse.connect import connect

    with FileLock(settings.data_dir / "alerts.lock"), connect(settings) as connection:
        return watch(
            connection,
            settings,
            conditions(connection, failed_checks or (), failed_steps),
            sinks_of(settings),
            datetime.now(UTC).replace(tzinfo=None),
            keep_kinds=FROM_HISTORY if failed_checks is None else (),
        )
