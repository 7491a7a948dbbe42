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

latency as (
    select
        date_trunc('week', transaction_at) as as_of_at,
        percentile_cont(0.99) within group (order by cast(latency_ms as double)) as score_latency_p99_ms
    from {{ ref('payment_scores') }}
    where latency_ms is not null
    group by date_trunc('week', transaction_at)
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
    union all
    select
        as_of_at,
        'score_latency_p99_ms' as metric,
        score_latency_p99_ms as value
    from latency
)

{{ against_targets('fraud_detection') }}
