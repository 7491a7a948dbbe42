select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount
from {{ source('raw', 'payments_stream__payments') }}
qualify row_number() over (
    partition by transaction_id
    order by
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint),
        split_part(_source_position, '/', 2)
) = 1
