-- What happens at the very instant of as_of_at is not yet known then: hours look from a microsecond before it.
with events as (
    select
        machine_id,
        {{ microseconds('performed_at') }} as looked_at,
        case when kind in ('repair', 'preventive') then performed_at end as maintained_at,
        case when kind = 'recalibration' then performed_at end as recalibrated_at,
        0 as errors,
        0 as failures,
        cast(null as timestamp) as as_of_at
    from {{ ref('stg_plant_db__maintenance') }}
    union all
    select
        machine_id,
        {{ microseconds('occurred_at') }} as looked_at,
        null as maintained_at,
        null as recalibrated_at,
        1 as errors,
        0 as failures,
        null as as_of_at
    from {{ ref('stg_plant_db__machine_errors') }}
    union all
    select
        machine_id,
        {{ microseconds('failed_at') }} as looked_at,
        null as maintained_at,
        null as recalibrated_at,
        0 as errors,
        1 as failures,
        null as as_of_at
    from {{ ref('stg_plant_db__failures') }}
    union all
    select
        machine_id,
        {{ microseconds('hour_at + interval 1 hour') }} - 1 as looked_at,
        null as maintained_at,
        null as recalibrated_at,
        0 as errors,
        0 as failures,
        hour_at + interval 1 hour as as_of_at
    from {{ ref('int_machine_hours__conditioned') }}
),

known as (
    select
        machine_id,
        as_of_at,
        max(maintained_at) over so_far as maintained_at,
        max(recalibrated_at) over so_far as recalibrated_at,
        sum(errors) over last_day as errors_count_24h,
        sum(failures) over so_far as failures_count
    from events
    window
        so_far as (
            partition by machine_id
            order by looked_at range between unbounded preceding and current row
        ),
        last_day as (
            partition by machine_id
            order by looked_at {{ range_of_days(1) }}
        )
),

registered as (
    select
        machine_model,
        count(*) as sensors_count
    from {{ ref('stg_plant_db__sensors') }}
    group by machine_model
),

heard as (
    select
        machine_id,
        as_of_at,
        count(*) filter (where readings_count_6h > 0) as sensors_count,
        sum(readings_count_24h) as readings_count_24h
    from {{ ref('feat_sensor__windows') }}
    group by machine_id, as_of_at
)

select
    h.machine_id,
    k.as_of_at,
    h.machine_model,
    h.episode_number,
    {{ hours_between('m.commissioned_at', 'k.as_of_at') }} as age_hours,
    {{ hours_between('h.episode_started_at', 'k.as_of_at') }} as episode_hours,
    {{ hours_between('greatest(k.maintained_at, m.commissioned_at)', 'k.as_of_at') }}
        as hours_since_maintenance,
    {{ hours_between('k.recalibrated_at', 'k.as_of_at') }} as hours_since_recalibration,
    cast(k.errors_count_24h as bigint) as errors_count_24h,
    cast(k.failures_count as bigint) as failures_count,
    cast(r.sensors_count - s.sensors_count as bigint) as silent_sensors_count,
    cast(s.readings_count_24h as bigint) as readings_count_24h
from {{ ref('int_machine_hours__conditioned') }} as h
inner join {{ ref('stg_plant_db__machines') }} as m on h.machine_id = m.machine_id
inner join known as k on h.machine_id = k.machine_id and h.hour_at + interval 1 hour = k.as_of_at
inner join registered as r on h.machine_model = r.machine_model
inner join heard as s on h.machine_id = s.machine_id and k.as_of_at = s.as_of_at
