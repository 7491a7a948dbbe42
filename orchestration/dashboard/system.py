"""The screen of the system: whether today's numbers can be trusted."""

from __future__ import annotations

import polars as pl
import streamlit as st

from orchestration.dashboard.published import Reading
from orchestration.layers import USE_CASES

_LABELS = {name: name.replace("_", " ").capitalize() for name in USE_CASES}


def show(reading: Reading) -> None:
    """A verdict, then what it rests on."""
    st.title("Can I trust today's numbers?")
    targets, landed = _targets(reading), _landed(reading)
    missed = targets.filter(~pl.col("is_met")) if not targets.is_empty() else targets
    release = reading.release
    quarantined, came = (
        (landed["rows_quarantined"].sum(), landed["rows_in"].sum())
        if not landed.is_empty()
        else (0, 0)
    )
    gaps = reading.rows("from mon_landing__gaps").height if reading.has("mon_landing__gaps") else 0
    verdict = (
        f"Release {release.name} passed every check that blocks ({release.checks_passed:,} passed,"
        f" {release.checks_warned} warned)."
    )
    if missed.is_empty() and not gaps:
        st.success(
            f"**Yes.** {verdict} Every target is met, and no day is missing.",
            icon=":material/verified:",
        )
    else:
        parts = [f"{missed.height} of {targets.height} targets are missed"] if missed.height else []
        parts += [f"{gaps} gaps in what has landed"] if gaps else []
        st.warning(f"**Yes, but** {' and '.join(parts)}. {verdict}", icon=":material/warning:")
    figures = (
        ("Targets met", f"{targets.height - missed.height} of {targets.height}"),
        ("Rows set aside", f"{quarantined:,} of {came:,}"),
        ("Days missing", f"{gaps}"),
        ("Last landed (UTC)", _newest(landed)),
    )  # fmt: skip
    for column, (label, value) in zip(st.columns(4), figures, strict=True):
        column.metric(label, value)
    _alerts(reading)
    st.subheader("Metrics against their targets")
    if targets.is_empty():
        st.info("No metric is published yet.")
    else:
        _shown_targets(targets)
    _decisions(reading)
    _releases(reading)
    st.subheader("What has landed")
    if landed.is_empty():
        st.info("Nothing has landed yet.")
    else:
        st.dataframe(
            landed,
            hide_index=True,
            column_config={
                "table_name": st.column_config.TextColumn("Table", pinned=True),
                "rows_in": st.column_config.NumberColumn("Rows came", format="localized"),
                "rows_quarantined": st.column_config.NumberColumn("Set aside", format="localized"),
                "quarantined_share": st.column_config.NumberColumn("Share set aside", format="percent"),
                "last_loaded_at": st.column_config.DatetimeColumn("Last landed (UTC)", format="D MMM YYYY, HH:mm"),
            },
        )  # fmt: skip
        st.caption(
            "Set aside: rows that break their contract, kept with the reason until somebody mends them."
        )


def _newest(landed: pl.DataFrame) -> str:
    newest = landed.select(pl.col("last_loaded_at").max()).item() if landed.height else None
    return f"{newest:%-d %b %Y, %H:%M}" if newest else "-"


def _targets(reading: Reading) -> pl.DataFrame:
    """use_case, metric, value, target, direction, is_met, measured_at: the newest of what was measured."""
    if not reading.has("mon_metrics__current"):
        return pl.DataFrame()
    return reading.rows(
        "select use_case, metric, value, target, direction, is_met, measured_at from mon_metrics__current"
        " where value is not null order by is_met, use_case, metric"
    )


def _shown_targets(targets: pl.DataFrame) -> None:
    st.dataframe(
        targets.select(
            verdict=pl.when("is_met").then(pl.lit("✓ met")).otherwise(pl.lit("✗ missed")),
            use_case=pl.col("use_case").replace(_LABELS),
            metric=pl.col("metric").str.replace_all("_", " "),
            value=pl.col("value").cast(pl.Float64).round_sig_figs(4),
            target=pl.col("direction").str.replace_all("_", " ")
            + " "
            + pl.col("target")
            .cast(pl.Float64)
            .round_sig_figs(4)
            .cast(pl.String)
            .str.strip_suffix(".0"),
            measured_at=pl.col("measured_at"),
        ),
        hide_index=True,
        height="content",
        column_config={
            "verdict": st.column_config.TextColumn("", width="small"),
            "use_case": "Use case",
            "metric": "Metric",
            "value": st.column_config.NumberColumn("Value"),
            "target": "Target",
            "measured_at": st.column_config.DatetimeColumn("Measured for", format="D MMM YYYY"),
        },
    )
    st.caption("Who owns a target, and why it is what it is: `seeds/metric_targets.csv`.")


def _landed(reading: Reading) -> pl.DataFrame:
    if not reading.has("mon_landing__counted"):
        return pl.DataFrame()
    return reading.rows(
        "select table_name, rows_in, rows_quarantined, rows_quarantined / nullif(rows_in, 0) as quarantined_share,"
        " last_loaded_at from mon_landing__counted order by rows_quarantined desc, table_name"
    )


def _alerts(reading: Reading) -> None:
    """Open alerts: those of now, whatever release is in force."""
    there = reading.rows(
        "select 1 from duckdb_tables() where database_name = current_database()"
        " and schema_name = 'monitoring' and table_name = 'alerts'"
    )
    if there.is_empty():
        return
    st.subheader("Open alerts")
    alerts = reading.rows(
        "select severity, use_case, what_happened, what_it_means, what_to_do, opened_at"
        " from monitoring.alerts where closed_at is null order by opened_at desc limit 50"
    )
    if alerts.is_empty():
        st.success("None: nothing drifted, failed or went silent.", icon=":material/check:")
        return
    st.dataframe(
        alerts.with_columns(pl.col("use_case").replace(_LABELS)),
        hide_index=True,
        column_config={
            "severity": "Severity",
            "use_case": "Use case",
            "what_happened": st.column_config.TextColumn("What happened", width="large"),
            "what_it_means": st.column_config.TextColumn("What it means", width="large"),
            "what_to_do": st.column_config.TextColumn("What to do", width="large"),
            "opened_at": st.column_config.DatetimeColumn("Since (UTC)", format="D MMM YYYY, HH:mm"),
        },
    )


def _releases(reading: Reading) -> None:
    st.subheader("Releases")
    st.dataframe(
        pl.DataFrame(
            [
                {
                    "release": one.name,
                    "": "in force" if one.name == reading.release.name else "",
                    "released at (UTC)": f"{one.released_at:%-d %b %Y, %H:%M}",
                    "rows": one.rows_count,
                    "checks passed": one.checks_passed,
                    "warned": one.checks_warned,
                }
                for one in reversed(reading.releases[-10:])
            ]
        ),
        hide_index=True,
    )
    st.caption("`make rollback` puts the one before in force; every screen follows at once.")


def _decisions(reading: Reading) -> None:
    """The last decisions on models, if the release has such a table."""
    if "mon_models__decided" not in reading.tables:
        return
    st.subheader("Decisions on models")
    decisions = reading.rows(
        "select decided_at, use_case, kind, action, model_version, reason, decided_by"
        " from mon_models__decided order by decided_at desc, decision_number desc limit 20"
    )
    if decisions.is_empty():
        st.info("No model was promoted or refused yet.")
        return
    st.dataframe(
        decisions.with_columns(
            pl.col("use_case").replace(_LABELS), pl.col("action").str.replace_all("_", " ")
        ),
        hide_index=True,
        column_config={
            "decided_at": st.column_config.DatetimeColumn("When (UTC)", format="D MMM YYYY, HH:mm"),
            "use_case": "Use case",
            "kind": "Kind",
            "action": "Decision",
            "model_version": "Model",
            "reason": st.column_config.TextColumn("Why", width="large"),
            "decided_by": "By",
        },
    )
