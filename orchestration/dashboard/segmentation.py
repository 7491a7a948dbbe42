"""The screen of customer segmentation: whom to address with which campaign this month."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import altair as alt
import polars as pl
import streamlit as st

from orchestration.dashboard.published import Reading
from orchestration.duckdb_session import literal

MONTHLY = "mon_segments__monthly"
_SEGMENTS = f"""
    with newest as (select * from {MONTHLY} where as_of_at = (select max(as_of_at) from {MONTHLY})),
    before as (
        select segment_name, households_count from {MONTHLY}
        where as_of_at = (select max(as_of_at) - interval 1 month from {MONTHLY})
    )
    select n.as_of_at, n.segment_name, n.households_count, 100 * n.households_share as households_share,
        cast(round(n.revenue_usd) as bigint) as revenue_usd, 100 * n.revenue_share as revenue_share,
        cast(n.revenue_usd as double) / n.households_count as revenue_per_household,
        n.households_count - b.households_count as households_change,
        n.description
    from newest as n left join before as b on n.segment_name = b.segment_name
    order by n.revenue_usd desc
"""


def show(reading: Reading) -> None:
    """Segments and their worth; of the chosen one who is in it, where from, and the list to download."""
    st.title("Whom do we address with which campaign this month?")
    if not reading.has(MONTHLY):
        st.info("No segments are published yet. `make demo` or `make build` makes them.")
        return
    segments = reading.rows(_SEGMENTS)
    last_day = segments["as_of_at"][0] - timedelta(days=1)
    total, revenue = segments["households_count"].sum(), segments["revenue_usd"].sum()
    st.markdown(
        f"**{total:,} households** in {segments.height} groups by how they bought until"
        f" {last_day:%-d %B %Y}; they spent **${revenue:,.0f}** in the last month."
    )
    st.dataframe(
        segments.select(
            "segment_name", "households_count", "households_share", "households_change",
            "revenue_usd", "revenue_share", "revenue_per_household",
        ),
        hide_index=True,
        column_config={
            "segment_name": st.column_config.TextColumn("Segment", pinned=True),
            "households_count": st.column_config.NumberColumn("Households", format="localized"),
            "households_share": _share("Share of households"),
            "households_change": st.column_config.NumberColumn("On last month", format="%+d"),
            "revenue_usd": st.column_config.NumberColumn("Revenue, $", format="localized"),
            "revenue_share": _share("Share of revenue"),
            "revenue_per_household": st.column_config.NumberColumn("$ a household", format="%.0f"),
        },
    )  # fmt: skip
    chosen = st.selectbox("Segment to address", segments["segment_name"].to_list())
    _segment(reading, segments.row(by_predicate=pl.col("segment_name") == chosen, named=True))


def _segment(reading: Reading, segment: dict[str, Any]) -> None:
    name, (said, _, idea) = segment["segment_name"], segment["description"].partition("Idea: ")
    left, right = st.columns([3, 2], gap="large")
    with left:
        if idea:
            st.success(f"**Campaign idea:** {idea}", icon=":material/campaign:")
        st.markdown(said.replace("$", "\\$"))
        members = reading.rows(
            f"""
            select household_id, round(confidence, 3) as confidence
            from customer_segments
            where as_of_at = (select max(as_of_at) from customer_segments)
                and segment_name = {literal(name)}
            order by confidence desc, household_id
            """
        )
        st.download_button(
            f"Download the {members.height:,} households (CSV)",
            members.write_csv(),
            f"{name.lower().replace(' ', '_')}_{segment['as_of_at']:%Y-%m-%d}.csv",
            "text/csv",
            icon=":material/download:",
        )
        st.caption("Household numbers and how sure the model is (1: typical, 0: on the border).")
    with right:
        moved = reading.rows(
            f"""
            select from_segment_name as other, sum(households_count) as households
            from mon_segments__migrated
            where as_of_at = (select max(as_of_at) from mon_segments__migrated)
                and to_segment_name = {literal(name)}
            group by 1
            """
        )
        st.markdown("**Where they were last month** (households)")
        if moved.is_empty():
            st.caption("There is no month before to compare with.")
        else:
            st.altair_chart(_bars(moved))
    sizes = reading.rows(
        f"select as_of_at - interval 1 day as month, households_count as households from {MONTHLY}"
        f" where segment_name = {literal(name)}"
    )
    st.markdown(f"**{name} by month** (households)")
    st.altair_chart(
        alt.Chart(sizes)
        .mark_line(point=True)
        .encode(
            x=alt.X("month:T", title=None, axis=alt.Axis(format="%b %Y", tickCount="month")),
            y=alt.Y("households:Q", title=None, scale=alt.Scale(zero=True)),
            tooltip=[alt.Tooltip("month:T", format="%B %Y"), "households"],
        )
        .properties(height=220)
    )


def _bars(frame: pl.DataFrame) -> Any:
    bars = alt.Chart(frame).encode(
        x=alt.X("households:Q", title=None, axis=None),
        y=alt.Y("other:N", title=None, sort="-x", axis=alt.Axis(labelLimit=180)),
    )
    return (
        bars.mark_bar()
        + bars.mark_text(align="left", dx=4, color="gray").encode(text="households:Q")
    ).properties(height=32 * frame.height + 10)


def _share(label: str) -> Any:
    return st.column_config.ProgressColumn(label, format="%.0f %%", min_value=0, max_value=100)
