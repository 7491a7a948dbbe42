with versions as (
    select
        transaction_id,
        is_fraud,
        reported_at as known_at,
        1 as preference
    from {{ ref('stg_payments_stream__fraud_reports') }}
    union all
    select
        transaction_id,
        is_fraud,
        known_at,
        2 as preference
    from {{ ref('stg_payments_lake__fraud_labels') }}
),

-- Of two that became known at the same time, the report counts.
known as (
    select
        transaction_id,
        is_fraud,
        known_at
    from versions
    qualify row_number() over (partition by transaction_id, known_at order by preference) = 1
)

select
    p.transaction_id,
    p.transaction_at,
    p.customer_id,
    p.terminal_id,
    k.is_fraud,
    k.known_at,
    lead(k.known_at) over (partition by p.transaction_id order by k.known_at) as superseded_at
from known as k
inner join {{ ref('int_payments__merged') }} as p on k.transaction_id = p.transaction_id
