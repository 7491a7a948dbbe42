select
    table_name,
    count(*) as batches_count,
    cast(sum(rows_in) as bigint) as rows_in,
    cast(sum(rows_kept) as bigint) as rows_kept,
    cast(sum(rows_quarantined) as bigint) as rows_quarantined,
    cast(sum(rows_deduplicated) as bigint) as rows_deduplicated,
    cast(sum(seconds) as double) as seconds,
    max(loaded_at) as last_loaded_at
from {{ source('landing', 'ledger') }}
group by table_name
