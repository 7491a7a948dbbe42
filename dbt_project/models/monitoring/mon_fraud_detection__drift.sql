{% set features = {'amount': 'amount', 'is_night': 'is_night'} %}
{% for measure in
    ['customer_payments_count', 'customer_amount_avg', 'terminal_payments_count', 'terminal_fraud_share'] %}
    {% for days in [1, 7, 30] %}
        {% do features.update({measure ~ '_' ~ days ~ 'd': measure ~ '_' ~ days ~ 'd'}) %}
    {% endfor %}
{% endfor %}
{% set predictions = {'score': 'score', 'is_alert': 'is_alert'} %}
{% set outcomes = {
    'calibration': 'cast(label as double) - score',
    'squared_error': 'power(cast(label as double) - score, 2)',
} %}

with payments as (
    {{ daily_statistics(ref('feat_payment__windows'), 'as_of_at', features) }}
),

scores as (
    {{ daily_statistics(ref('payment_scores'), 'transaction_at', predictions) }}
),

-- Labels come late: what the champion said of its test week, against what became known.
champions as (
    select
        b.transaction_at,
        b.score,
        case when b.label then 1 else 0 end as label
    from {{ source('predictions', 'fraud_backtest') }} as b
    inner join {{ source('trained_models', 'fraud_detection') }} as m
        on b.as_of_at = m.as_of_at and b.algorithm = m.algorithm and m.is_champion
),

labelled as (
    {{ daily_statistics('champions', 'transaction_at', outcomes) }}
),

series as (
    {{ as_series('payments', features, warm_up_days=30 + var('label_delay_days') | int) }}
    union all
    {{ as_series('scores', predictions) }}
    union all
    {{ as_series('labelled', outcomes) }}
),

{{ drift_verdicts() }}
