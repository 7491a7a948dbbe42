select
    maintenance_id,
    machine_id,
    performed_at,
    kind,
    component
from {{ source('raw', 'plant_db__maintenance') }}
qualify row_number() over (
    partition by maintenance_id
    order by
        _loaded_at desc,
        machine_id desc,
        performed_at desc,
        kind desc,
        component desc
) = 1
