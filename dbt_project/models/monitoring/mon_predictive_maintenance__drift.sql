{% set features = {
    'value_avg_24h': 'value_avg_24h',
    'deviation_avg_24h': 'deviation_avg_24h',
    'deviation_std_24h': 'deviation_std_24h',
    'deviation_slope_24h': 'deviation_slope_24h',
    'hours_since_reading': 'hours_since_reading',
} %}
{% set predictions = {'failure_probability': 'failure_probability', 'remaining_hours': 'remaining_hours'} %}
{% set outcomes = {
    'calibration': 'cast(label as int) - failure_probability',
    'squared_error': 'power(cast(label as int) - failure_probability, 2)',
} %}

with sensors as (
    select
        f.*,
        concat(m.machine_model, ' ', f.sensor) as subject
    from {{ ref('feat_sensor__windows') }} as f
    inner join {{ ref('stg_plant_db__machines') }} as m on f.machine_id = m.machine_id
),

sensor_days as (
    {{ daily_statistics('sensors', 'as_of_at', features, subject='subject') }}
),

scores as (
    {{ daily_statistics(ref('machine_health'), 'as_of_at', predictions, subject='machine_model') }}
),

-- Labels come late: what the champions said, against what became known.
champions as (
    select *
    from {{ source('predictions', 'maintenance_backtest') }}
    where is_champion and label is not null
),

labelled as (
    {{ daily_statistics('champions', 'as_of_at', outcomes, subject='machine_model') }}
),

series as (
    {{ as_series('sensor_days', features, warm_up_days=14) }}
    union all
    {{ as_series('scores', predictions) }}
    union all
    {{ as_series('labelled', outcomes) }}
),

{{ drift_verdicts() }}
