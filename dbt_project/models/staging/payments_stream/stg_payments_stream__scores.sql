select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount,
    is_weekend,
    is_night,
    customer_payments_count_1d,
    customer_payments_count_7d,
    customer_payments_count_30d,
    customer_amount_avg_1d,
    customer_amount_avg_7d,
    customer_amount_avg_30d,
    terminal_payments_count_1d,
    terminal_payments_count_7d,
    terminal_payments_count_30d,
    terminal_fraud_share_1d,
    terminal_fraud_share_7d,
    terminal_fraud_share_30d,
    score,
    is_alert,
    reasons,
    model_version,
    scored_at,
    latency_ms,
    revision,
    payment_position
from {{ source('raw', 'payments_stream__scores') }}
qualify row_number() over (
    partition by transaction_id, revision
    order by
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint),
        split_part(_source_position, '/', 2)
) = 1
