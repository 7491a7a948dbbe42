select
    error_id,
    machine_id,
    occurred_at,
    code
from {{ source('raw', 'plant_db__machine_errors') }}
qualify row_number() over (
    partition by error_id
    order by
        _loaded_at desc,
        machine_id desc,
        occurred_at desc,
        code desc
) = 1
