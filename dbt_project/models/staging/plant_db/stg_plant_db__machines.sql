select
    machine_id,
    machine_model,
    commissioned_at
from {{ source('raw', 'plant_db__machines') }}
qualify row_number() over (
    partition by machine_id
    order by
        _loaded_at desc,
        machine_model desc,
        commissioned_at desc
) = 1
