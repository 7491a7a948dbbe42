"""The screen of predictive maintenance: which machine to visit next."""

from __future__ import annotations

import altair as alt
import polars as pl
import streamlit as st

from orchestration.dashboard.published import Reading
from orchestration.duckdb_session import literal

# What was said live; before that, what the champion of the tested month would have said.
_HEALTH = """
    select machine_id, machine_model, as_of_at, failure_probability, remaining_hours,
        remaining_hours_low, remaining_hours_high, reasons, model_version, 'live' as source
    from machine_health
    union all
    select machine_id, machine_model, as_of_at, failure_probability, remaining_hours,
        remaining_hours_low, remaining_hours_high, '' as reasons, model_version, 'backtest' as source
    from maintenance_backtest as tested
    where is_champion and as_of_at < coalesce(
        (select min(as_of_at) from machine_health as live where live.machine_id = tested.machine_id),
        timestamp '9999-01-01'
    )
"""
_DAYS = 14


def show(reading: Reading) -> None:
    """The fleet, the most urgent first; the chosen machine's health over time; what the warnings save."""
    st.title("Which machine do we visit next?")
    if not (reading.has("machine_health") or reading.has("maintenance_backtest")):
        st.info("No machine has been scored yet. `make demo` or `make build` does it.")
        return
    fleet = reading.rows(
        f"""
        with newest as (
            from ({_HEALTH})
            qualify row_number() over (partition by machine_id order by as_of_at desc) = 1
        ),
        open as (
            select source, machine_id, min(opened_at) as opened_at,
                max_by(reasons, opened_at) as reasons
            from mon_predictive_maintenance__warnings where closed_at is null
            group by source, machine_id
        )
        select n.machine_id, n.machine_model, n.failure_probability, o.opened_at, n.remaining_hours,
            n.remaining_hours_low, n.remaining_hours_high,
            coalesce(nullif(n.reasons, ''), o.reasons, '') as reasons, n.as_of_at, n.source,
            date_diff('hour', n.as_of_at, max(n.as_of_at) over ()) as hours_silent
        from newest as n left join open as o on n.machine_id = o.machine_id and n.source = o.source
        order by o.opened_at is null, n.failure_probability desc, n.machine_id
        """
    )
    _next(fleet)
    st.dataframe(
        fleet.select(
            "machine_id", pl.col("failure_probability") * 100,
            pl.col("opened_at").dt.strftime("%-d %b, %H:%M").fill_null(""), "remaining_hours", "reasons",
            "machine_model", "hours_silent",
        ),
        hide_index=True,
        height=252,
        column_config={
            "machine_id": st.column_config.TextColumn("Machine", pinned=True),
            "failure_probability": st.column_config.ProgressColumn(
                "Fails within 48 h", format="%.0f %%", min_value=0, max_value=100
            ),
            "opened_at": "Warning since (UTC)",
            "remaining_hours": st.column_config.NumberColumn("Hours left", format="%.0f"),
            "reasons": st.column_config.TextColumn("Why", width="large"),
            "machine_model": st.column_config.TextColumn("Model"),
            "hours_silent": st.column_config.NumberColumn("Hours silent", format="%d"),
        },
    )  # fmt: skip
    if "live" not in fleet["source"]:
        st.caption("As tested on the last month; `make stream` scores the machines as they run.")
    chosen = st.selectbox("Machine", fleet["machine_id"].to_list())
    if reasons := fleet.filter(machine_id=chosen)["reasons"].item():
        st.markdown("- " + reasons.replace("; ", "\n- "))
    _machine(reading, chosen)
    _money(reading)


def _next(fleet: pl.DataFrame) -> None:
    first, warned = fleet.row(0, named=True), fleet["opened_at"].count()
    likely = f"{first['failure_probability']:.0%}"
    told = f"{'more than 99%' if likely == '100%' else likely} likely to fail within 48 hours"
    if first["remaining_hours"] is not None:
        told += (
            f", about {first['remaining_hours']:.0f} hours left"
            f" ({first['remaining_hours_low']:.0f} to {first['remaining_hours_high']:.0f})"
        )
    if warned:
        st.warning(f"**Visit {first['machine_id']} next**: {told}.", icon=":material/build:")
    else:
        st.success(
            f"**No visit is due.** Closest to one is {first['machine_id']}: {told}.",
            icon=":material/check:",
        )
    st.markdown(
        f"{warned} of {fleet.height} machines have an open warning, as of"
        f" {fleet.select(pl.col('as_of_at').max()).item():%-d %B %Y, %H:%M} UTC."
    )


def _machine(reading: Reading, machine_id: str) -> None:
    # Of a list that this page made, but a name may hold a quote all the same.
    name = literal(machine_id)
    hours = reading.rows(
        f"""
        with hours as (from ({_HEALTH}) where machine_id = {name})
        select h.as_of_at, h.failure_probability, h.remaining_hours, m.warning_threshold
        from hours as h left join predictive_maintenance as m
            on h.model_version = m.model_version
        where h.as_of_at > (select max(as_of_at) from hours) - interval {_DAYS} days
        order by h.as_of_at
        """
    )
    failures = reading.rows(
        f"""
        select failed_at, case when is_warned then 'failure, warned of' else 'failure, missed' end as what
        from mon_predictive_maintenance__failures where machine_id = {name}
            and failed_at > (select max(as_of_at) from ({_HEALTH}) where machine_id = {name})
                - interval {_DAYS} days
        """
    )
    st.markdown(f"**{machine_id}: failure probability, last {_DAYS} days**")
    scale = alt.Scale(domain=[0, 1])
    drawn = alt.Chart(hours).mark_line().encode(
        x=alt.X("as_of_at:T", title=None, axis=alt.Axis(format="%-d %b", labelOverlap=True)),
        y=alt.Y("failure_probability:Q", title="within 48 hours", scale=scale, axis=alt.Axis(format="%")),
        tooltip=[
            alt.Tooltip("as_of_at:T", format="%d %b %H:%M"),
            alt.Tooltip("failure_probability:Q", format=".0%"),
            alt.Tooltip("remaining_hours:Q", format=".0f"),
        ],
    )  # fmt: skip
    limit = alt.Chart(hours.drop_nulls("warning_threshold")).mark_line(
        strokeDash=[4, 4], color="gray", interpolate="step-after"
    ).encode(x="as_of_at:T", y=alt.Y("warning_threshold:Q", scale=scale))  # fmt: skip
    marks = alt.Chart(failures).mark_rule(color="#d62728", strokeWidth=2).encode(
        x="failed_at:T", tooltip=["what", alt.Tooltip("failed_at:T", format="%d %b %H:%M")]
    )  # fmt: skip
    st.altair_chart((drawn + limit + marks).properties(height=260))
    st.caption("Dashed: from here on a warning opens. Red: the machine failed.")


def _money(reading: Reading) -> None:
    if not reading.has("mon_predictive_maintenance__failures"):
        return
    months = reading.rows(
        """
        with costs as (
            select date_trunc('month', failed_at) as month, count(*) as failures,
                count(*) filter (where is_warned) as warned,
                cast(sum(cost_without) as double) as without_warnings,
                cast(sum(cost_with) as double) as standstill
            from mon_predictive_maintenance__failures group by 1
        ),
        calls as (
            select date_trunc('month', opened_at) as month, cast(sum(callout_cost) as double) as callouts,
                count(*) as visits, count(*) filter (where is_true) as right_visits
            from mon_predictive_maintenance__warnings where source = 'backtest' group by 1
        )
        select c.month, c.failures, c.warned, c.without_warnings, coalesce(k.visits, 0) as visits,
            coalesce(k.right_visits, 0) as right_visits,
            c.standstill + coalesce(k.callouts, 0) as with_warnings
        from costs as c left join calls as k using (month) order by month
        """
    )
    st.subheader("Do the visits pay?")
    without, paid = (float(months[name].sum()) for name in ("without_warnings", "with_warnings"))
    figures = (
        ("Saved", f"{without - paid:,.0f}", f"of {without:,.0f} that breakdowns would cost"),
        ("Failures warned of", f"{months['warned'].sum()} of {months['failures'].sum()}", "in time for planned work"),
        ("Visits that were right", f"{months['right_visits'].sum()} of {months['visits'].sum()}", "it did fail"),
    )  # fmt: skip
    for column, (label, value, told) in zip(st.columns(3), figures, strict=True):
        column.metric(label, value, told, delta_color="off", delta_arrow="off")
    bars = months.select(
        pl.col("month").dt.strftime("%Y-%m"),
        **{"run to failure": "without_warnings", "with warnings and visits": "with_warnings"},
    ).unpivot(index="month", variable_name="what", value_name="cost")
    st.altair_chart(
        alt.Chart(bars)
        .mark_bar()
        .encode(
            x=alt.X("month:N", title=None, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("what:N", sort=["run to failure"]),
            y=alt.Y("cost:Q", title="cost a month"),
            color=alt.Color(
                "what:N", title=None, sort=["run to failure"], legend=alt.Legend(orient="bottom")
            ),
            tooltip=["month", "what", alt.Tooltip("cost:Q", format=",.0f")],
        )
        .properties(height=260)
    )
    st.caption(
        "In the currency of the maintenance policy, for the months on which the models were tested."
    )
