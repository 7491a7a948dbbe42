with arrived as (
    select
        transaction_id,
        transaction_at,
        customer_id,
        terminal_id,
        amount,
        1 as preference
    from {{ ref('stg_payments_stream__payments') }}
    union all
    select
        transaction_id,
        transaction_at,
        customer_id,
        terminal_id,
        amount,
        2 as preference
    from {{ ref('stg_payments_lake__payments') }}
)

select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount
from arrived
-- The lake gets what the stream had: where both have a payment, it is the stream's, which was scored.
qualify row_number() over (partition by transaction_id order by preference) = 1
