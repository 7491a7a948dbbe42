"""The screen of fraud detection: how many cards to investigate a day, and which alerts first."""

from __future__ import annotations

import altair as alt
import polars as pl
import streamlit as st

from orchestration.dashboard.published import Reading

MOST_CARDS = 300
_WEEKS = 4
# As mon_fraud_detection__saved has it, for every capacity: a card is ranked by its highest score of the day.
_BY_CAPACITY = f"""
    with tested as (
        select distinct as_of_at, algorithm from mon_fraud_detection__saved where is_champion
        qualify dense_rank() over (order by as_of_at desc) <= {_WEEKS}
    ),
    cards as (
        select b.as_of_at, cast(b.transaction_at as date) as payment_date, b.customer_id,
            row_number() over (
                partition by b.as_of_at, cast(b.transaction_at as date)
                order by max(b.score) desc, b.customer_id
            ) as place,
            cast(sum(case when b.label then b.amount else 0 end) as double) as stolen
        from fraud_backtest as b inner join tested as t using (as_of_at, algorithm)
        group by b.as_of_at, cast(b.transaction_at as date), b.customer_id
    ),
    days as (select count(distinct payment_date) as days, sum(stolen) as stolen from cards)
    select place as cards, days.days, days.stolen / days.days as stolen_per_day,
        sum(sum(c.stolen)) over (order by place) / days.days as saved_per_day,
        sum(count(*) filter (where c.stolen > 0)) over (order by place) / days.days as found_per_day
    from cards as c cross join days
    where place <= {MOST_CARDS}
    group by place, days.days, days.stolen
    order by place
"""
_COST = """
    select sum(investigation_cost) / sum(cards_investigated_count) as cost,
        max(cards_investigated_count) as capacity,
        min(payment_date) as first_date, max(payment_date) as last_date
    from mon_fraud_detection__saved where is_champion
"""
_ALERTS = """
    select customer_id, max(transaction_at) as latest_at, count(*) as payments,
        cast(sum(amount) as double) as amount, max(score) as score,
        max_by(reasons, score) as reasons
    from payment_scores
    where is_alert and cast(transaction_at as date) = (
        select max(cast(transaction_at as date)) from payment_scores where is_alert
    )
    group by customer_id order by score desc, customer_id
"""
_TESTED = """
    select customer_id, max(transaction_at) as latest_at, count(*) as payments,
        cast(max_by(amount, score) as double) as amount, max(score) as score,
        'from the model''s test; reasons come with live scores' as reasons
    from fraud_backtest
    where (as_of_at, algorithm) = (
        select (as_of_at, algorithm) from mon_fraud_detection__saved
        where is_champion order by payment_date desc limit 1
    ) and cast(transaction_at as date) = (
        select max(payment_date) from mon_fraud_detection__saved where is_champion
    )
    group by customer_id order by score desc, customer_id
"""


def show(reading: Reading) -> None:
    """Money saved against capacity, and the cards to look at first."""
    st.title("How many cards do we investigate a day, and which first?")
    if not reading.has("mon_fraud_detection__saved", "fraud_backtest"):
        st.info("No tested fraud model is published yet. `make demo` or `make build` makes one.")
        return
    cost, capacity, _, last = reading.rows(_COST).row(0)
    curve = reading.rows(_BY_CAPACITY).with_columns(cost_per_day=pl.col("cards") * cost)
    curve = curve.with_columns(net_per_day=pl.col("saved_per_day") - pl.col("cost_per_day"))
    cards = st.slider(
        "Cards to investigate a day", 1, curve.height, min(int(capacity), curve.height)
    )
    at = curve.row(cards - 1, named=True)
    best = curve.row(int(curve["net_per_day"].arg_max() or 0), named=True)
    figures = (
        (
            "Saved a day",
            f"{at['saved_per_day']:,.0f}",
            f"of {at['stolen_per_day']:,.0f} that fraud takes",
        ),
        ("Costs a day", f"{at['cost_per_day']:,.0f}", f"{cost:.2f} a card"),
        ("Left over a day", f"{at['net_per_day']:,.0f}", "saved less costs"),
        ("Frauds found", f"{at['found_per_day']:.1f}", f"of {cards} cards looked at"),
    )
    for column, (label, value, told) in zip(st.columns(4), figures, strict=True):
        column.metric(label, value, told, delta_color="off", delta_arrow="off")
    st.markdown(
        f"Most is left over at **{best['cards']} cards a day**: {best['net_per_day']:,.0f} a day."
        f" Today's capacity is {capacity:.0f}."
    )
    _curve(curve, cards)
    st.caption(
        f"Money in the currency of the payments, the average of {at['days']} days until {last:%-d %B %Y}"
        " on which the better model of each week was tested. Saved is what the cards found were defrauded of that"
        " day: the most that stopping them can save."
    )
    _alerts(reading, cards)


def _curve(curve: pl.DataFrame, cards: int) -> None:
    lines = curve.select(
        "cards", saved=pl.col("saved_per_day"), costs=pl.col("cost_per_day"),
        left_over=pl.col("net_per_day"),
    ).rename({"left_over": "left over"}).unpivot(index="cards", variable_name="what", value_name="money")  # fmt: skip
    drawn = alt.Chart(lines).mark_line().encode(
        x=alt.X("cards:Q", title="cards investigated a day"),
        y=alt.Y("money:Q", title="money a day"),
        color=alt.Color(
            "what:N", title=None, sort=["saved", "left over", "costs"],
            legend=alt.Legend(orient="bottom"),
        ),
        tooltip=["cards", "what", alt.Tooltip("money:Q", format=",.0f")],
    )  # fmt: skip
    rule = alt.Chart(pl.DataFrame({"cards": [cards]})).mark_rule(strokeDash=[4, 4], color="gray")
    st.altair_chart((drawn + rule.encode(x="cards:Q")).properties(height=300))


def _alerts(reading: Reading, cards: int) -> None:
    is_live = reading.has("payment_scores") and not reading.rows(_ALERTS).is_empty()
    alerts = reading.rows(_ALERTS if is_live else _TESTED)
    if alerts.is_empty():
        st.info("No card stands out: there is no alert on the last day that was scored.")
        return
    day = alerts.select(pl.col("latest_at").max()).item()
    source = "alerts of" if is_live else "cards in the test of"
    st.subheader(f"Look at these first: {source} {day:%-d %B %Y}")
    st.dataframe(
        alerts.head(cards).with_row_index("place", 1),
        hide_index=True,
        column_config={
            "place": st.column_config.NumberColumn("#", width="small"),
            "customer_id": st.column_config.NumberColumn("Card of customer", format="%d"),
            "latest_at": st.column_config.DatetimeColumn("Last payment (UTC)", format="HH:mm"),
            "payments": st.column_config.NumberColumn("Payments"),
            "amount": st.column_config.NumberColumn("Amount", format="%.2f"),
            "score": st.column_config.ProgressColumn(
                "Score", format="%.2f", min_value=0, max_value=1
            ),
            "reasons": st.column_config.TextColumn("Why", width="large"),
        },
    )
    st.caption(
        f"{min(cards, alerts.height)} of {alerts.height} cards"
        + (
            f"; {alerts.height - cards} are beyond the capacity chosen above."
            if alerts.height > cards
            else "."
        )
    )
    if not is_live:
        st.caption(
            "`make stream` scores payments as they come; its alerts then stand here, with reasons."
        )
