select
    warning_id,
    machine_id,
    machine_model,
    state,
    changed_at,
    as_of_at,
    failure_probability,
    remaining_hours,
    reasons,
    closed_by,
    model_version
from {{ source('raw', 'plant_stream__warnings') }}
qualify row_number() over (
    partition by warning_id, state
    order by
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint),
        split_part(_source_position, '/', 2)
) = 1
