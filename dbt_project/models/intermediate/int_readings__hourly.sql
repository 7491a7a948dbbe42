{% set ahead = "coalesce(h.hour_at >= c.ahead_from, false)" %}

-- No sensor reads a thousand million of anything; without a bound a sum of squares had none either.
with registered as (
    select
        m.machine_id,
        m.machine_model,
        s.sensor,
        s.unit,
        greatest(s.min_value, -1e9) as least_value,
        least(s.max_value, 1e9) as most_value
    from {{ ref('stg_plant_db__machines') }} as m
    inner join {{ ref('stg_plant_db__sensors') }} as s on m.machine_model = s.machine_model
),

converted as (
    select
        r.machine_id,
        date_trunc('hour', r.read_at) as hour_at,
        r.sensor,
        s.machine_model,
        r.read_at,
        r.unit <> s.unit as is_converted,
        case when r.unit = s.unit then r.value else r.value * c.factor + c.addend end as value,
        s.least_value,
        s.most_value,
        r.arrivals_count,
        r.is_late
    from {{ ref('stg_plant_stream__readings') }} as r
    inner join registered as s on r.machine_id = s.machine_id and r.sensor = s.sensor
    left join {{ ref('unit_conversions') }} as c on r.unit = c.unit and s.unit = c.to_unit
),

valued as (
    select
        *,
        case when value between least_value and most_value then {{ micros('value') }} end as value_micros
    from converted
),

hours as (
    select
        machine_id,
        hour_at,
        sensor,
        machine_model,
        count(*) as arrived_count,
        count(value_micros) as readings_count,
        count(*) filter (where value is null) as unknown_unit_count,
        count(value_micros) filter (where is_converted) as converted_count,
        coalesce(sum(cast(value_micros as decimal(38, 0))), 0) as micros_sum,
        coalesce(sum(cast(value_micros as decimal(38, 0)) * value_micros), 0) as micros_squares_sum,
        min(value_micros) as micros_min,
        max(value_micros) as micros_max,
        max(read_at) filter (where value_micros is not null) as last_read_at,
        sum(arrivals_count - 1) as conflicting_count,
        count(*) filter (where is_late) as late_count
    from valued
    group by machine_id, hour_at, sensor, machine_model
),

machines_per_hour as (
    select
        hour_at,
        lag(hour_at) over (order by hour_at) as previous_hour_at,
        count(distinct machine_id) as machines_count
    from hours
    group by hour_at
),

usual as (
    select median(machines_count) as machines_count from machines_per_hour
),

-- The plant's clock: the last hour in which a fair part of the machines spoke, and on from there as long as anyone
-- does. What lies a day beyond that comes from a clock that is ahead.
attended as (
    select max(m.hour_at) as hour_at
    from machines_per_hour as m
    cross join usual as u
    where m.machines_count >= greatest(u.machines_count / 10, least(u.machines_count, 2))
),

clock as (
    select min(m.hour_at) as ahead_from
    from machines_per_hour as m
    inner join attended as a on m.hour_at > a.hour_at
    where m.hour_at >= m.previous_hour_at + interval 25 hours
)

select
    h.machine_id,
    h.hour_at,
    h.sensor,
    h.machine_model,
    cast(case when {{ ahead }} then 0 else h.readings_count end as bigint) as readings_count,
    cast(case when {{ ahead }} then 0 else h.micros_sum end as decimal(38, 0)) as micros_sum,
    cast(case when {{ ahead }} then 0 else h.micros_squares_sum end as decimal(38, 0)) as micros_squares_sum,
    case when not {{ ahead }} then h.micros_min end as micros_min,
    case when not {{ ahead }} then h.micros_max end as micros_max,
    case when not {{ ahead }} then h.last_read_at end as last_read_at,
    cast(h.conflicting_count as bigint) as conflicting_count,
    cast(h.late_count as bigint) as late_count,
    cast(case when {{ ahead }} then h.arrived_count else h.arrived_count - h.readings_count end as bigint)
        as rejected_count,
    cast(h.unknown_unit_count as bigint) as unknown_unit_count,
    cast(h.converted_count as bigint) as converted_count,
    {{ ahead }} as is_ahead
from hours as h
cross join clock as c
