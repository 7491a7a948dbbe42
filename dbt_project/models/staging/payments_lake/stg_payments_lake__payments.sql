select
    transaction_id,
    transaction_at,
    customer_id,
    terminal_id,
    amount
from {{ source('raw', 'payments_lake__payments') }}
qualify row_number() over (
    partition by transaction_id
    order by _loaded_at desc, transaction_at desc, customer_id desc, terminal_id desc, amount desc
) = 1
