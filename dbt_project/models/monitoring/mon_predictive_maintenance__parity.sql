{% set comparable = 'not (is_unknown or is_of_other_readings or is_of_new_reference)' %}
{% set features = ['deviation_baseline', 'deviation_distance_6h', 'deviation_distance_24h', 'hours_since_reading'] %}
{% for hours in [6, 24] %}
    {% for measure in
        ['value_avg', 'value_min', 'value_max', 'deviation_avg', 'deviation_std', 'deviation_slope'] %}
        {% do features.append(measure ~ '_' ~ hours ~ 'h') %}
    {% endfor %}
{% endfor %}

-- The stream learns with the next build of a reference that has become known.
with too_new as (
    select distinct
        s.machine_id,
        s.as_of_at,
        s.sensor
    from {{ ref('stg_plant_stream__sensor_features') }} as s
    inner join {{ ref('stg_plant_db__machines') }} as m on s.machine_id = m.machine_id
    inner join {{ ref('int_sensor_references__fixed') }} as r
        on
            m.machine_model = r.machine_model
            and s.sensor = r.sensor
            and s.as_of_at >= r.known_at
            and s.as_of_at < r.known_at + interval 7 days
),

compared as (
    select
        cast(s.as_of_at as date) as as_of_date,
        f.machine_id is null as is_unknown,
        -- A late reading of a setting changes what is normal for all sensors of the machine.
        f.machine_id is not null
        and min(
            case
                when
                    s.episode_number = f.episode_number
                    and s.readings_count_6h = f.readings_count_6h
                    and s.readings_count_24h = f.readings_count_24h
                    then 1
                else 0
            end
        ) over (partition by s.machine_id, s.as_of_at) = 0 as is_of_other_readings,
        n.machine_id is not null as is_of_new_reference,
        {% for feature in features %}
            case
                when s.{{ feature }} is null and f.{{ feature }} is null then 0
                when abs(s.{{ feature }} - f.{{ feature }}) <= 1e-9 * abs(f.{{ feature }}) then 0
                else 1
            end as {{ feature }}_differs,
        {% endfor %}
        case when s.is_stuck = f.is_stuck then 0 else 1 end as is_stuck_differs
    from {{ ref('stg_plant_stream__sensor_features') }} as s
    left join {{ ref('feat_sensor__windows') }} as f
        on s.machine_id = f.machine_id and s.as_of_at = f.as_of_at and s.sensor = f.sensor
    left join too_new as n
        on s.machine_id = n.machine_id and s.as_of_at = n.as_of_at and s.sensor = n.sensor
)

select
    as_of_date,
    count(*) as sensor_hours_count,
    count(*) filter (where is_unknown) as unknown_count,
    count(*) filter (where is_of_other_readings) as differs_in_readings_count,
    count(*) filter (where is_of_new_reference) as new_reference_count,
    {% for feature in ['is_stuck'] + features %}
        coalesce(
            cast(
                sum({{ feature }}_differs) filter (where {{ comparable }}) as bigint
            ),
            0
        ) as {{ feature }}_mismatches_count,
    {% endfor %}
    coalesce(
        cast(
            sum(
                {% for feature in ['is_stuck'] + features %}
                    {{ feature }}_differs {{ '+' if not loop.last }}
                {% endfor %}
            ) filter (where {{ comparable }}) as bigint
        ),
        0
    ) as mismatches_count
from compared
group by as_of_date
