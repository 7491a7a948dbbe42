with versions as (
    select
        transaction_id,
        transaction_at,
        is_fraud,
        _loaded_at,
        row_number() over (partition by transaction_id order by _loaded_at, is_fraud) as version
    from {{ source('raw', 'payments_lake__payments') }}
    where is_fraud is not null
),

known as (
    select
        transaction_id,
        is_fraud,
        -- What a rewritten file says otherwise was known when it landed, and not before.
        case
            when version = 1 then transaction_at + interval {{ var('label_delay_days') }} days
            else greatest(_loaded_at, transaction_at + interval {{ var('label_delay_days') }} days)
        end as known_at,
        version
    from versions
)

select
    transaction_id,
    is_fraud,
    known_at
from known
qualify row_number() over (partition by transaction_id, known_at order by version desc) = 1
