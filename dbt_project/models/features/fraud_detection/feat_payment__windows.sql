{% set windows = [1, 7, 30] %}
{% set delay = var('label_delay_days') | int %}

with payments as (
    select
        transaction_id,
        transaction_at,
        customer_id,
        terminal_id,
        amount,
        cast(amount * 100 as bigint) as amount_cents
    from {{ ref('int_payments__merged') }}
),

-- The customer's payments in (t - N days, t]. The range takes in all payments made at t;
-- those of them with a larger transaction_id come after this one and are taken off again.
customer_windows as (
    select
        transaction_id,
        {% for days in windows %}
            count(*) over last_{{ days }}d - count(*) over later_at_t as payments_count_{{ days }}d,
            sum(amount_cents) over last_{{ days }}d
            - coalesce(sum(amount_cents) over later_at_t, 0) as amount_cents_sum_{{ days }}d,
        {% endfor %}
        customer_id
    from payments
    window
        {% for days in windows %}
            last_{{ days }}d as (partition by customer_id order by transaction_at {{ range_of_days(days) }}),
        {% endfor %}
        later_at_t as (
            partition by customer_id, transaction_at
            order by transaction_id
            rows between 1 following and unbounded following
        )
),

-- A label that says fraud counts for the terminal's payments at t as long as the labelled payment lies in
-- (t - delay - N days, t - delay] and the label is the version known at t: from started_at until ended_at.
-- superseded_at is null while a version is in force; least() passes over nulls.
frauds as (
    select
        terminal_id,
        greatest(transaction_at + interval {{ delay }} days, known_at) as started_at,
        {% for days in windows %}
            greatest(
                started_at, least(transaction_at + interval {{ delay + days }} days, superseded_at)
            ) as ended_at_{{ days }}d,
        {% endfor %}
        known_at
    from {{ ref('int_fraud_labels__versioned') }}
    where is_fraud
),

-- So a running sum per window counts them: +1 where one starts, -1 where it ends, 0 at a payment, which reads it.
terminal_events as (
    select
        terminal_id,
        transaction_at as happened_at,
        {% for days in windows %}
            0 as frauds_change_{{ days }}d,
        {% endfor %}
        transaction_id
    from payments
    union all
    select
        terminal_id,
        started_at as happened_at,
        {% for days in windows %}
            1 as frauds_change_{{ days }}d,
        {% endfor %}
        null as transaction_id
    from frauds
    {% for days in windows %}
        union all
        select
            terminal_id,
            ended_at_{{ days }}d as happened_at,
            {% for each in windows %}
                {{ -1 if each == days else 0 }} as frauds_change_{{ each }}d,
            {% endfor %}
            null as transaction_id
        from frauds
    {% endfor %}
),

-- The terminal's payments in (t - delay - N days, t - delay] are those of the last delay + N days less those of the
-- last delay days. The running sum at t has every change that happened at t.
terminal_windows as (
    select
        transaction_id,
        {% for days in windows %}
            count(transaction_id) over last_{{ delay + days }}d
            - count(transaction_id) over last_{{ delay }}d as payments_count_{{ days }}d,
            sum(frauds_change_{{ days }}d) over until_t as frauds_count_{{ days }}d,
        {% endfor %}
        terminal_id
    from terminal_events
    window
        {% for days in [0] + windows %}
            last_{{ delay + days }}d as (
                partition by terminal_id
                order by happened_at {{ range_of_days(delay + days) }}
            ),
        {% endfor %}
        until_t as (
            partition by terminal_id
            order by happened_at range between unbounded preceding and current row
        )
)

select
    p.transaction_id,
    p.transaction_at as as_of_at,
    p.customer_id,
    p.terminal_id,
    p.amount,
    {% for days in windows %}
        c.payments_count_{{ days }}d as customer_payments_count_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        cast(c.amount_cents_sum_{{ days }}d as double)
        / c.payments_count_{{ days }}d / 100 as customer_amount_avg_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        t.payments_count_{{ days }}d as terminal_payments_count_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        coalesce(
            cast(t.frauds_count_{{ days }}d as double) / nullif(t.payments_count_{{ days }}d, 0), 0
        ) as terminal_fraud_share_{{ days }}d,
    {% endfor %}
    {{ is_weekend('p.transaction_at') }} as is_weekend,
    extract(hour from p.transaction_at) <= 6 as is_night
from payments as p
inner join customer_windows as c on p.transaction_id = c.transaction_id
inner join terminal_windows as t on p.transaction_id = t.transaction_id
