select
    transaction_id,
    is_fraud,
    reported_at
from {{ source('raw', 'payments_stream__fraud_reports') }}
qualify row_number() over (
    partition by transaction_id, reported_at
    order by
        _loaded_at desc,
        cast(split_part(_source_position, '/', 3) as bigint) desc,
        split_part(_source_position, '/', 2) desc
) = 1
