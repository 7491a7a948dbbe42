select
    machine_model,
    sensor,
    unit,
    min_value,
    max_value,
    is_setting,
    setting_step
from {{ source('raw', 'plant_db__sensors') }}
qualify row_number() over (
    partition by machine_model, sensor
    order by
        _loaded_at desc,
        unit desc,
        min_value desc,
        max_value desc,
        is_setting desc,
        setting_step desc
) = 1
