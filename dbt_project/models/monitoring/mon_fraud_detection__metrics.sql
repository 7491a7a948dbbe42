with cards_alerted as (
    select
        date_trunc('week', transaction_at) as as_of_at,
        cast(transaction_at as date) as payment_date,
        count(distinct customer_id) as cards_count
    from {{ ref('payment_scores') }}
    where is_alert
    group by date_trunc('week', transaction_at), cast(transaction_at as date)
),

alerts as (
    select
        as_of_at,
        avg(cards_count) as alerts_per_day
    from cards_alerted
    group by as_of_at
),

saved as (
    select
        as_of_at,
        cast(sum(saved_amount) as double) / nullif(cast(sum(fraud_amount) as double), 0) as saved_share,
        cast(sum(saved_amount) as double) / nullif(cast(sum(investigation_cost) as double), 0) as saved_per_cost
    from {{ ref('mon_fraud_detection__saved') }}
    where is_champion
    group by as_of_at
),

parity as (
    select
        date_trunc('week', cast(payment_date as timestamp)) as as_of_at,
        sum(mismatches_count) as mismatches_count
    from {{ ref('mon_fraud_detection__parity') }}
    group by date_trunc('week', cast(payment_date as timestamp))
),

measured as (
    {% for metric in ['average_precision', 'card_precision_100', 'auc_roc'] %}
        select
            as_of_at,
            '{{ metric }}' as metric,
            {{ metric }} as value
        from {{ source('trained_models', 'fraud_detection') }}
        where is_champion and {{ metric }} is not null
        union all
    {% endfor %}
    select
        as_of_at,
        'saved_share' as metric,
        saved_share as value
    from saved
    where saved_share is not null
    union all
    select
        as_of_at,
        'saved_per_cost' as metric,
        saved_per_cost as value
    from saved
    where saved_per_cost is not null
    union all
    select
        as_of_at,
        'parity_mismatches' as metric,
        mismatches_count as value
    from parity
    union all
    select
        as_of_at,
        'alerts_per_day' as metric,
        alerts_per_day as value
    from alerts
)

select
    cast(m.as_of_at as timestamp) as as_of_at,
    m.metric,
    cast(m.value as double) as value,
    cast(t.target as double) as target,
    t.direction,
    case
        when t.direction = 'at_least' then m.value >= t.target
        else m.value <= t.target
    end as is_met
from measured as m
inner join {{ ref('metric_targets') }} as t
    on m.metric = t.metric and t.use_case = 'fraud_detection'
