with lasts as (
    select
        machine_id,
        max(hour_at) + interval 1 hour as heard_until
    from {{ ref('int_machine_hours__conditioned') }}
    group by machine_id
),

observed as (
    select
        h.machine_id,
        h.hour_at + interval 1 hour as as_of_at,
        h.episode_number,
        case when e.ended_by = 'failure' then e.ended_at end as failed_at,
        coalesce(e.ended_at, l.heard_until) as observed_until
    from {{ ref('int_machine_hours__conditioned') }} as h
    inner join {{ ref('int_machine_episodes__started') }} as e
        on h.machine_id = e.machine_id and h.episode_number = e.episode_number
    inner join lasts as l on h.machine_id = l.machine_id
)

select
    o.machine_id,
    o.as_of_at,
    o.episode_number,
    o.failed_at,
    o.observed_until,
    {{ hours_between('o.as_of_at', 'o.observed_until') }} as remaining_hours,
    o.failed_at is null as is_censored,
    case
        when {{ hours_between('o.as_of_at', 'o.failed_at') }} <= p.horizon_hours then true
        when {{ hours_between('o.as_of_at', 'o.observed_until') }} >= p.horizon_hours then false
    end as label,
    case
        when {{ hours_between('o.as_of_at', 'o.failed_at') }} <= p.horizon_hours then o.failed_at
        when
            {{ hours_between('o.as_of_at', 'o.observed_until') }} >= p.horizon_hours
            then o.as_of_at + p.horizon_hours * interval 1 hour
    end as label_known_at
from observed as o
cross join {{ ref('maintenance_policy') }} as p
where o.as_of_at <= o.observed_until
