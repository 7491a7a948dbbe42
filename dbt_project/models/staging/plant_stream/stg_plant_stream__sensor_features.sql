select
    machine_id,
    as_of_at,
    sensor,
    episode_number,
    readings_count_6h,
    value_avg_6h,
    value_min_6h,
    value_max_6h,
    deviation_avg_6h,
    deviation_std_6h,
    deviation_slope_6h,
    readings_count_24h,
    value_avg_24h,
    value_min_24h,
    value_max_24h,
    deviation_avg_24h,
    deviation_std_24h,
    deviation_slope_24h,
    deviation_baseline,
    deviation_distance_6h,
    deviation_distance_24h,
    hours_since_reading,
    is_stuck,
    conflicting_count_24h,
    late_count_24h,
    rejected_count_24h
from {{ source('raw', 'plant_stream__sensor_features') }}
qualify row_number() over (
    partition by machine_id, as_of_at, sensor
    order by
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint),
        split_part(_source_position, '/', 2)
) = 1
