select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount
from {{ source('raw', 'payments_stream__payments') }}
qualify row_number() over (
    partition by transaction_id
    order by _loaded_at, _source_position
) = 1
