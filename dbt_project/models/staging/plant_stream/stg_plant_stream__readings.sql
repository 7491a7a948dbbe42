with arrived as (
    -- An event that comes again changes nothing.
    select
        machine_id,
        read_at,
        sensor,
        value,
        unit,
        _loaded_at,
        cast(split_part(_source_position, '/', 3) as bigint) as arrival,
        split_part(_source_position, '/', 2) as arrived_in
    from {{ source('raw', 'plant_stream__readings') }}
    qualify row_number() over (
        partition by machine_id, sensor, read_at, value, unit
        order by
            _loaded_at,
            cast(split_part(_source_position, '/', 3) as bigint),
            split_part(_source_position, '/', 2)
    ) = 1
)

select
    machine_id,
    read_at,
    sensor,
    value,
    unit,
    arrival,
    count(*) over (partition by machine_id, sensor, read_at) as arrivals_count,
    max(read_at) over (
        partition by machine_id, sensor
        order by _loaded_at, arrival, arrived_in
        rows between unbounded preceding and current row
    ) > read_at as is_late
from arrived
qualify row_number() over (
    partition by machine_id, sensor, read_at
    order by _loaded_at, arrival, arrived_in
) = 1
