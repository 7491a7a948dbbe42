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
from {{ ref('stg_plant_stream__machine_health') }}
