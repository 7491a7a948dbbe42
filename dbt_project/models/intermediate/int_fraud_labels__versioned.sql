with versions as (
    select
        p.transaction_id,
        r.is_fraud,
        r.reported_at as known_at
    from {{ ref('stg_payments_stream__fraud_reports') }} as r
    inner join {{ ref('int_payments__merged') }} as p on r.transaction_id = p.transaction_id
    union all
    select
        l.transaction_id,
        l.is_fraud,
        l.transaction_at + interval {{ var('label_delay_days') }} days as known_at
    from {{ ref('stg_payments_lake__payments') }} as l
    -- A report says when the label became known; without one it is known after the usual delay.
    left join {{ ref('stg_payments_stream__fraud_reports') }} as r on l.transaction_id = r.transaction_id
    where l.is_fraud is not null and r.transaction_id is null
)

select
    p.transaction_id,
    p.transaction_at,
    p.customer_id,
    p.terminal_id,
    v.is_fraud,
    v.known_at,
    lead(v.known_at) over (partition by p.transaction_id order by v.known_at) as superseded_at
from versions as v
inner join {{ ref('int_payments__merged') }} as p on v.transaction_id = p.transaction_id
