with hours as (
    select
        cast(hour_at as date) as read_date,
        machine_id,
        case when is_ahead then 0 else unknown_unit_count end as unknown_unit_count,
        case when is_ahead then 0 else rejected_count - unknown_unit_count end as impossible_value_count,
        case when is_ahead then rejected_count else 0 end as clock_ahead_count,
        case when is_ahead then 0 else converted_count end as converted_unit_count,
        conflicting_count,
        late_count
    from {{ ref('int_readings__hourly') }}
),

arrived as (
    select
        cast(read_at as date) as read_date,
        machine_id,
        sensor,
        count(*) as readings_count
    from {{ ref('stg_plant_stream__readings') }}
    group by cast(read_at as date), machine_id, sensor
),

flagged as (
    {% for reason in
        ['unknown_unit', 'impossible_value', 'clock_ahead', 'converted_unit', 'conflicting', 'late'] %}
        select
            read_date,
            machine_id,
            '{{ reason }}' as reason,
            {{ reason }}_count as readings_count
        from hours
        where {{ reason }}_count > 0
        union all
    {% endfor %}
    select
        r.read_date,
        r.machine_id,
        case when m.machine_id is null then 'unknown_machine' else 'unknown_sensor' end as reason,
        r.readings_count
    from arrived as r
    left join {{ ref('stg_plant_db__machines') }} as m on r.machine_id = m.machine_id
    left join {{ ref('stg_plant_db__sensors') }} as s on m.machine_model = s.machine_model and r.sensor = s.sensor
    where s.sensor is null
    union all
    select
        cast(h.hour_at as date) as read_date,
        h.machine_id,
        'before_commissioning' as reason,
        h.readings_count
    from {{ ref('int_readings__hourly') }} as h
    inner join {{ ref('stg_plant_db__machines') }} as m on h.machine_id = m.machine_id
    where h.hour_at < m.commissioned_at and h.readings_count > 0
),

days as (
    select
        read_date,
        sum(readings_count) as arrived_count
    from arrived
    group by read_date
)

select
    f.read_date,
    f.reason,
    cast(sum(f.readings_count) as bigint) as readings_count,
    count(distinct f.machine_id) as machines_count,
    cast(max(d.arrived_count) as bigint) as arrived_count,
    f.reason not in ('converted_unit', 'conflicting', 'late') as is_rejected,
    cast(sum(f.readings_count) as double) / cast(max(d.arrived_count) as double) as readings_share
from flagged as f
inner join days as d on f.read_date = d.read_date
group by f.read_date, f.reason
