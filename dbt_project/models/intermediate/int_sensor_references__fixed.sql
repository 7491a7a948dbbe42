with baseline_hours as (
    select
        h.machine_model,
        h.sensor,
        m.condition_id,
        h.hour_at,
        h.readings_count,
        h.micros_sum,
        h.micros_squares_sum,
        p.reference_machine_hours,
        row_number() over (
            partition by h.machine_model, h.sensor, m.condition_id
            order by h.hour_at, h.machine_id
        ) as place
    from {{ ref('int_machine_hours__conditioned') }} as m
    inner join {{ ref('int_readings__hourly') }} as h on m.machine_id = h.machine_id and m.hour_at = h.hour_at
    cross join {{ ref('maintenance_policy') }} as p
    where
        h.readings_count > 0
        and {{ microseconds('m.hour_at') }}
        < {{ microseconds('m.episode_started_at') }} + p.baseline_hours * 3600000000
),

summed as (
    select
        machine_model,
        sensor,
        condition_id,
        cast(sum(readings_count) as decimal(38, 0)) as readings_count,
        sum(micros_sum) as micros_sum,
        sum(micros_squares_sum) as micros_squares_sum,
        max(hour_at) + interval 1 hour as known_at
    from baseline_hours
    where place <= reference_machine_hours
    group by machine_model, sensor, condition_id, reference_machine_hours
    having count(*) = reference_machine_hours
),

averaged as (
    select
        *,
        {{ floor_divided('micros_sum', 'readings_count') }} as mean_micros
    from summed
)

-- Around the whole number next to the mean, so that nothing is lost by taking a large square off another.
select
    machine_model,
    sensor,
    condition_id,
    mean_micros,
    sqrt(
        (
            cast(
                micros_squares_sum
                - 2 * cast(mean_micros as decimal(38, 0)) * micros_sum
                + readings_count * mean_micros * mean_micros
                as double
            )
            - cast(micros_sum - readings_count * mean_micros as double)
            * cast(micros_sum - readings_count * mean_micros as double)
            / cast(readings_count as double)
        ) / cast(nullif(readings_count - 1, 0) as double)
    ) as std_micros,
    known_at
from averaged
