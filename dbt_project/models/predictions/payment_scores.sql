select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount,
    score,
    is_alert,
    reasons,
    model_version,
    scored_at,
    latency_ms,
    last_revision > 0 as is_corrected,
    payment_position
from (
    select
        *,
        max(revision) over (partition by transaction_id) as last_revision
    from {{ ref('stg_payments_stream__scores') }}
) as revisions
where revision = 0
