select
    f.transaction_id,
    f.as_of_at,
    f.customer_id,
    f.terminal_id,
    f.amount,
    f.is_weekend,
    f.is_night,
    f.customer_payments_count_1d,
    f.customer_payments_count_7d,
    f.customer_payments_count_30d,
    f.customer_amount_avg_1d,
    f.customer_amount_avg_7d,
    f.customer_amount_avg_30d,
    f.terminal_payments_count_1d,
    f.terminal_payments_count_7d,
    f.terminal_payments_count_30d,
    f.terminal_fraud_share_1d,
    f.terminal_fraud_share_7d,
    f.terminal_fraud_share_30d,
    l.is_fraud as label,
    l.known_at as label_known_at
from {{ ref('feat_payment__windows') }} as f
inner join {{ ref('int_fraud_labels__versioned') }} as l
    on f.transaction_id = l.transaction_id and l.superseded_at is null
