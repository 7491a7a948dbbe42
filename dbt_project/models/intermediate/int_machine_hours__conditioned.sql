-- A bigint holds six settings' levels.
{% set most_settings = 6 %}

with settings as (
    select
        machine_model,
        sensor,
        cast({{ micros('setting_step') }} as decimal(38, 0)) as step_micros,
        cast(power(1000, row_number() over (partition by machine_model order by sensor) - 1) as bigint) as place
    from {{ ref('stg_plant_db__sensors') }}
    where is_setting and setting_step * 1e6 >= 1
    qualify row_number() over (partition by machine_model order by sensor) <= {{ most_settings }}
),

hours as (
    select
        h.machine_id,
        h.hour_at,
        h.machine_model,
        coalesce(
            sum(
                s.place * (
                    500 + greatest(
                        -499,
                        least(
                            499,
                            {{ floor_divided(
                                '(2 * h.micros_sum + h.readings_count * s.step_micros)',
                                '(2 * h.readings_count * s.step_micros)'
                            ) }}
                        )
                    )
                )
            ),
            0
        ) as condition_id
    from {{ ref('int_readings__hourly') }} as h
    left join settings as s on h.machine_model = s.machine_model and h.sensor = s.sensor
    where h.readings_count > 0
    group by h.machine_id, h.hour_at, h.machine_model
),

episodes as (
    select
        machine_id,
        episode_number,
        started_at,
        lead(started_at) over (partition by machine_id order by started_at) as next_started_at
    from {{ ref('int_machine_episodes__started') }}
)

select
    h.machine_id,
    h.hour_at,
    h.machine_model,
    e.episode_number,
    e.started_at as episode_started_at,
    cast(h.condition_id as bigint) as condition_id
from hours as h
inner join episodes as e
    on
        h.machine_id = e.machine_id
        and h.hour_at >= e.started_at
        and (h.hour_at < e.next_started_at or e.next_started_at is null)
