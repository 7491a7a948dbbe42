select
    machine_id,
    machine_model,
    as_of_at,
    episode_number,
    failure_probability,
    remaining_hours,
    remaining_hours_low,
    remaining_hours_high,
    reasons,
    model_version,
    readings_count_24h,
    scored_at,
    latency_ms,
    reading_position
from {{ source('raw', 'plant_stream__machine_health') }}
qualify row_number() over (
    partition by machine_id, as_of_at
    order by
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint),
        split_part(_source_position, '/', 2)
) = 1
