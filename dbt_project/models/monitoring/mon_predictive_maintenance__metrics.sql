{% set learned = {
    'remaining_hours_rmse': 'remaining_hours_rmse_all',
    'average_precision': 'average_precision',
    'interval_coverage': 'interval_coverage',
    'calibration_error': 'calibration_error',
} %}

with champions as (
    select
        {% for metric, measured in learned.items() %}
            avg({{ measured }}) as {{ metric }},
        {% endfor %}
        as_of_at
    from {{ source('trained_models', 'predictive_maintenance') }}
    where is_champion
    group by as_of_at
),

failures as (
    select
        as_of_at,
        avg(case when is_warned then 1.0 else 0.0 end) as warned_share,
        median(lead_time_hours) as lead_time_hours_median,
        sum(downtime_avoided_hours) as downtime_avoided_hours,
        cast(sum(cost_without) as double) as cost_without,
        cast(sum(cost_with) as double) as cost_with
    from {{ ref('mon_predictive_maintenance__failures') }}
    group by as_of_at
),

warnings as (
    select
        date_trunc('month', opened_at) as as_of_at,
        cast(sum(callout_cost) as double) as callouts_cost,
        avg(case when is_true then 0.0 when not is_true then 1.0 end) as false_callouts_share
    from {{ ref('mon_predictive_maintenance__warnings') }}
    where source = 'backtest'
    group by date_trunc('month', opened_at)
),

parity as (
    select
        date_trunc('month', cast(as_of_date as timestamp)) as as_of_at,
        sum(mismatches_count) as parity_mismatches
    from {{ ref('mon_predictive_maintenance__parity') }}
    group by date_trunc('month', cast(as_of_date as timestamp))
),

-- Readings by a clock that is ahead lie in months that no machine has lived to see; those are left out.
arrived as (
    select
        date_trunc('month', read_at) as as_of_at,
        cast(count(*) as double) as readings_count
    from {{ ref('stg_plant_stream__readings') }}
    group by date_trunc('month', read_at)
),

rejected as (
    select
        date_trunc('month', cast(read_date as timestamp)) as as_of_at,
        cast(sum(readings_count) as double) as readings_count
    from {{ ref('mon_plant_readings__flagged') }}
    where is_rejected
    group by date_trunc('month', cast(read_date as timestamp))
),

heard as (
    select distinct date_trunc('month', hour_at) as as_of_at from {{ ref('int_machine_hours__conditioned') }}
),

readings as (
    select
        a.as_of_at,
        coalesce(r.readings_count, 0) / a.readings_count as readings_rejected_share
    from arrived as a
    inner join heard as h on a.as_of_at = h.as_of_at
    left join rejected as r on a.as_of_at = r.as_of_at
),

costs as (
    select
        f.as_of_at,
        1 - (f.cost_with + coalesce(w.callouts_cost, 0)) / nullif(f.cost_without, 0) as cost_saved_share
    from failures as f
    left join warnings as w on f.as_of_at = w.as_of_at
),

latency as (
    select
        date_trunc('month', as_of_at) as as_of_at,
        percentile_cont(0.99) within group (order by cast(latency_ms as double)) as score_latency_p99_ms
    from {{ ref('machine_health') }}
    where latency_ms is not null
    group by date_trunc('month', as_of_at)
),

measured as (
    {% for metric in learned %}
        select
            as_of_at,
            '{{ metric }}' as metric,
            {{ metric }} as value
        from champions
        union all
    {% endfor %}
    {% for metric in ['warned_share', 'lead_time_hours_median', 'downtime_avoided_hours'] %}
        select
            as_of_at,
            '{{ metric }}' as metric,
            {{ metric }} as value
        from failures
        union all
    {% endfor %}
    select
        as_of_at,
        'false_callouts_share' as metric,
        false_callouts_share as value
    from warnings
    union all
    select
        as_of_at,
        'cost_saved_share' as metric,
        cost_saved_share as value
    from costs
    union all
    select
        as_of_at,
        'parity_mismatches' as metric,
        parity_mismatches as value
    from parity
    union all
    select
        as_of_at,
        'readings_rejected_share' as metric,
        readings_rejected_share as value
    from readings
    union all
    select
        as_of_at,
        'score_latency_p99_ms' as metric,
        score_latency_p99_ms as value
    from latency
)

{{ against_targets('predictive_maintenance') }}
where m.value is not null
