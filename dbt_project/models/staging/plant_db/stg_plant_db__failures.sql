select
    failure_id,
    machine_id,
    failed_at,
    component
from {{ source('raw', 'plant_db__failures') }}
qualify row_number() over (
    partition by failure_id
    order by
        _loaded_at desc,
        machine_id desc,
        failed_at desc,
        component desc
) = 1
