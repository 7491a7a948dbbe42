{% set windows = [6, 24] %}

select
    f.machine_id,
    f.as_of_at,
    f.sensor,
    f.episode_number,
    h.machine_model,
    {% for hours in windows %}
        f.readings_count_{{ hours }}h,
        f.value_avg_{{ hours }}h,
        f.value_min_{{ hours }}h,
        f.value_max_{{ hours }}h,
        f.deviation_avg_{{ hours }}h,
        f.deviation_std_{{ hours }}h,
        f.deviation_slope_{{ hours }}h,
    {% endfor %}
    f.deviation_baseline,
    f.deviation_distance_6h,
    f.deviation_distance_24h,
    f.hours_since_reading,
    f.is_stuck,
    f.conflicting_count_24h,
    f.late_count_24h,
    f.rejected_count_24h,
    h.age_hours,
    h.episode_hours,
    h.hours_since_maintenance,
    h.hours_since_recalibration,
    h.errors_count_24h,
    h.failures_count,
    h.silent_sensors_count,
    h.readings_count_24h as machine_readings_count_24h,
    l.label,
    l.label_known_at,
    l.remaining_hours,
    l.is_censored,
    l.failed_at,
    l.observed_until
from {{ ref('feat_sensor__windows') }} as f
inner join {{ ref('feat_machine__history') }} as h on f.machine_id = h.machine_id and f.as_of_at = h.as_of_at
inner join {{ ref('int_machine_hours__labelled') }} as l on f.machine_id = l.machine_id and f.as_of_at = l.as_of_at
