{% set windows = [1, 7, 30] %}
{% set delay = var('label_delay_days') | int %}

with payments as (
    select
        transaction_id,
        transaction_at,
        customer_id,
        terminal_id,
        amount,
        -- whole numbers are exact in a double, as are their sums up to 2^53
        cast(amount * 100 as double) as amount_cents
    from {{ ref('int_payments__merged') }}
),

-- Customers: their payments in (t - N days, t]. The range takes in all payments made at t; those of them with a
-- larger transaction_id come after this one and are taken off at the end.
-- Terminals: their payments in (t - delay - N days, t - delay] are those of the last delay + N days less those of the
-- last delay days.
payment_windows as (
    select
        transaction_id,
        transaction_at,
        customer_id,
        terminal_id,
        amount,
        {% for days in windows %}
            count(*) over customer_{{ days }}d as customer_count_{{ days }}d,
            sum(amount_cents) over customer_{{ days }}d as customer_cents_{{ days }}d,
            count(*) over terminal_{{ delay + days }}d
            - count(*) over terminal_{{ delay }}d as terminal_count_{{ days }}d,
        {% endfor %}
        amount_cents
    from payments
    window
        {% for days in windows %}
            customer_{{ days }}d as (
                partition by customer_id
                order by {{ microseconds('transaction_at') }} {{ range_of_days(days) }}
            ),
            terminal_{{ delay + days }}d as (
                partition by terminal_id
                order by {{ microseconds('transaction_at') }} {{ range_of_days(delay + days) }}
            ),
        {% endfor %}
        terminal_{{ delay }}d as (
            partition by terminal_id
            order by {{ microseconds('transaction_at') }} {{ range_of_days(delay) }}
        )
),

-- Few instants have several payments of a customer, so only those are put in order.
shared_instants as (
    select
        customer_id,
        transaction_at
    from payments
    group by customer_id, transaction_at
    having count(*) > 1
),

later_at_t as (
    select
        p.transaction_id,
        count(*) over later as payments_count,
        coalesce(sum(p.amount_cents) over later, 0) as amount_cents
    from payments as p
    inner join shared_instants as s on p.customer_id = s.customer_id and p.transaction_at = s.transaction_at
    window
        later as (
            partition by p.customer_id, p.transaction_at
            order by p.transaction_id
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

fraud_changes as (
    select
        terminal_id,
        {% for days in windows %}
            1 as change_{{ days }}d,
        {% endfor %}
        started_at as changed_at
    from frauds
    {% for days in windows %}
        union all
        select
            terminal_id,
            {% for each in windows %}
                {{ -1 if each == days else 0 }} as change_{{ each }}d,
            {% endfor %}
            ended_at_{{ days }}d as changed_at
        from frauds
    {% endfor %}
),

-- So the running sums of +1 where one starts and -1 where it ends count them, from each change on until the next.
fraud_counts as (
    select
        terminal_id,
        {% for days in windows %}
            sum(sum(change_{{ days }}d)) over until_then as frauds_count_{{ days }}d,
        {% endfor %}
        changed_at
    from fraud_changes
    group by terminal_id, changed_at
    window
        until_then as (
            partition by terminal_id
            order by changed_at range between unbounded preceding and current row
        )
),

-- A payment reads the counts as of the terminal's last change, which may happen at the very instant of the payment.
-- Most terminals never had a fraud: their payments have nothing to read.
payments_and_changes as (
    select
        transaction_id,
        terminal_id,
        transaction_at as happened_at,
        cast(null as timestamp) as changed_at
    from payments
    where terminal_id in (select c.terminal_id from fraud_counts as c)
    union all
    select
        null as transaction_id,
        terminal_id,
        changed_at as happened_at,
        changed_at
    from fraud_counts
),

last_changes as (
    select
        transaction_id,
        max(changed_at) over (
            partition by terminal_id
            order by {{ microseconds('happened_at') }} range between unbounded preceding and current row
        ) as changed_at
    from payments_and_changes
)

select
    p.transaction_id,
    p.transaction_at as as_of_at,
    p.customer_id,
    p.terminal_id,
    p.amount,
    {% for days in windows %}
        p.customer_count_{{ days }}d - coalesce(t.payments_count, 0) as customer_payments_count_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        (p.customer_cents_{{ days }}d - coalesce(t.amount_cents, 0))
        / customer_payments_count_{{ days }}d / 100 as customer_amount_avg_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        p.terminal_count_{{ days }}d as terminal_payments_count_{{ days }}d,
    {% endfor %}
    {% for days in windows %}
        coalesce(
            cast(f.frauds_count_{{ days }}d as double) / nullif(p.terminal_count_{{ days }}d, 0), 0
        ) as terminal_fraud_share_{{ days }}d,
    {% endfor %}
    {{ is_weekend('p.transaction_at') }} as is_weekend,
    extract(hour from p.transaction_at) <= 6 as is_night
from payment_windows as p
left join later_at_t as t on p.transaction_id = t.transaction_id
left join last_changes as l on p.transaction_id = l.transaction_id
left join fraud_counts as f on p.terminal_id = f.terminal_id and l.changed_at = f.changed_at
