with failures as (
    select
        t.as_of_at,
        e.machine_id,
        m.machine_model,
        e.episode_number,
        e.started_at,
        e.ended_at as failed_at
    from {{ ref('int_machine_episodes__started') }} as e
    inner join {{ ref('stg_plant_db__machines') }} as m on e.machine_id = m.machine_id
    inner join {{ source('trained_models', 'predictive_maintenance') }} as t
        on m.machine_model = t.machine_model and date_trunc('month', e.ended_at) = t.as_of_at and t.is_champion
    where e.ended_by = 'failure'
),

warned as (
    select
        f.machine_id,
        f.failed_at,
        min(w.opened_at) as warned_at
    from failures as f
    cross join {{ ref('maintenance_policy') }} as p
    inner join {{ ref('mon_predictive_maintenance__warnings') }} as w
        on
            f.machine_id = w.machine_id
            and f.started_at < w.opened_at
            and {{ hours_between('w.opened_at', 'f.failed_at') }} >= p.planned_downtime_hours
            and (
                w.closed_at is null
                or {{ hours_between('w.closed_at', 'f.failed_at') }} < p.planned_downtime_hours
            )
    where w.source = 'backtest'
    group by f.machine_id, f.failed_at
),

scored as (
    select
        f.machine_id,
        f.failed_at,
        max(b.failure_probability) as failure_probability_max
    from failures as f
    cross join {{ ref('maintenance_policy') }} as p
    inner join {{ source('predictions', 'maintenance_backtest') }} as b
        on
            f.machine_id = b.machine_id
            and b.is_champion
            and {{ hours_between('b.as_of_at', 'f.failed_at') }} between 0 and p.horizon_hours
    group by f.machine_id, f.failed_at
),

counted as (
    select
        f.*,
        s.failure_probability_max,
        w.warned_at,
        w.warned_at is not null as is_warned,
        p.unplanned_downtime_hours,
        case when w.warned_at is null then p.unplanned_downtime_hours else p.planned_downtime_hours end
            as downtime_hours,
        p.downtime_cost_per_hour
    from failures as f
    cross join {{ ref('maintenance_policy') }} as p
    left join warned as w on f.machine_id = w.machine_id and f.failed_at = w.failed_at
    left join scored as s on f.machine_id = s.machine_id and f.failed_at = s.failed_at
)

select
    as_of_at,
    machine_id,
    machine_model,
    episode_number,
    failed_at,
    failure_probability_max,
    is_warned,
    {{ hours_between('warned_at', 'failed_at') }} as lead_time_hours,
    cast(unplanned_downtime_hours - downtime_hours as double) as downtime_avoided_hours,
    cast(unplanned_downtime_hours * downtime_cost_per_hour as decimal(14, 2)) as cost_without,
    cast(downtime_hours * downtime_cost_per_hour as decimal(14, 2)) as cost_with
from counted
