{% set windows = [6, 24] %}

with heard as (
    select
        m.machine_id,
        m.episode_number,
        h.sensor,
        min(m.hour_at) as first_hour_at
    from {{ ref('int_machine_hours__conditioned') }} as m
    inner join {{ ref('int_readings__hourly') }} as h on m.machine_id = h.machine_id and m.hour_at = h.hour_at
    where h.readings_count > 0
    group by m.machine_id, m.episode_number, h.sensor
),

-- A sensor that has fallen silent keeps its rows, without readings. A deviation is what the model's sensor read in the
-- same condition taken off each reading; until that is known there is none.
hours as (
    select
        m.machine_id,
        m.hour_at,
        m.episode_number,
        s.sensor,
        cast({{ microseconds('m.hour_at') }} / 3600000000 as bigint) as hour_number,
        {{ microseconds('m.hour_at') }}
        < {{ microseconds('m.episode_started_at') }} + p.baseline_hours * 3600000000 as is_baseline,
        h.readings_count,
        h.micros_sum,
        h.micros_min,
        h.micros_max,
        h.last_read_at,
        h.conflicting_count,
        h.late_count,
        h.rejected_count,
        r.std_micros,
        case when r.mean_micros is not null then h.readings_count end as deviations_count,
        h.micros_sum - h.readings_count * cast(r.mean_micros as decimal(38, 0)) as deviation_sum,
        h.micros_squares_sum
        - 2 * r.mean_micros * h.micros_sum
        + h.readings_count * cast(r.mean_micros as decimal(38, 0)) * r.mean_micros as deviation_squares_sum
    from {{ ref('int_machine_hours__conditioned') }} as m
    inner join heard as s
        on m.machine_id = s.machine_id and m.episode_number = s.episode_number and m.hour_at >= s.first_hour_at
    left join {{ ref('int_readings__hourly') }} as h
        on m.machine_id = h.machine_id and m.hour_at = h.hour_at and s.sensor = h.sensor
    left join {{ ref('int_sensor_references__fixed') }} as r
        on
            m.machine_model = r.machine_model
            and s.sensor = r.sensor
            and m.condition_id = r.condition_id
            and m.hour_at >= r.known_at
    cross join {{ ref('maintenance_policy') }} as p
),

summed as (
    select
        machine_id,
        hour_at + interval 1 hour as as_of_at,
        sensor,
        episode_number,
        std_micros,
        {% for hours in windows %}
            {{ sensor_window_sums(hours) }},
        {% endfor %}
        sum(case when is_baseline then deviations_count end) over so_far as baseline_count,
        sum(case when is_baseline then deviation_sum end) over so_far as baseline_sum,
        max(last_read_at) over so_far as last_read_at,
        coalesce(sum(conflicting_count) over last_24h, 0) as conflicting_count_24h,
        coalesce(sum(late_count) over last_24h, 0) as late_count_24h,
        coalesce(sum(rejected_count) over last_24h, 0) as rejected_count_24h
    from hours
    window
        {% for hours in windows %}
            last_{{ hours }}h as (
                partition by machine_id, episode_number, sensor
                order by hour_number range between {{ hours - 1 }} preceding and current row
            ),
        {% endfor %}
        so_far as (
            partition by machine_id, episode_number, sensor
            order by hour_number range between unbounded preceding and current row
        )
),

features as (
    select
        machine_id,
        as_of_at,
        sensor,
        episode_number,
        {% for hours in windows %}
            {{ sensor_windows(hours) }},
        {% endfor %}
        cast(baseline_sum as double) / cast(nullif(baseline_count, 0) as double) / 1e6 as deviation_baseline,
        nullif(std_micros, 0) / 1e6 as reference_std,
        {{ hours_between('last_read_at', 'as_of_at') }} as hours_since_reading,
        coalesce(readings_count_24h >= 6 and micros_min_24h = micros_max_24h, false) as is_stuck,
        cast(conflicting_count_24h as bigint) as conflicting_count_24h,
        cast(late_count_24h as bigint) as late_count_24h,
        cast(rejected_count_24h as bigint) as rejected_count_24h
    from summed
)

select
    machine_id,
    as_of_at,
    sensor,
    episode_number,
    {% for hours in windows %}
        readings_count_{{ hours }}h,
        value_avg_{{ hours }}h,
        value_min_{{ hours }}h,
        value_max_{{ hours }}h,
        deviation_avg_{{ hours }}h,
        deviation_std_{{ hours }}h,
        deviation_slope_{{ hours }}h,
    {% endfor %}
    deviation_baseline,
    {% for hours in windows %}
        (deviation_avg_{{ hours }}h - deviation_baseline) / reference_std as deviation_distance_{{ hours }}h,
    {% endfor %}
    hours_since_reading,
    is_stuck,
    conflicting_count_24h,
    late_count_24h,
    rejected_count_24h
from features
