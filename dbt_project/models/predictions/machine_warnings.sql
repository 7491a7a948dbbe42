with opened as (
    select
        warning_id,
        machine_id,
        machine_model,
        as_of_at as opened_at,
        failure_probability,
        remaining_hours,
        reasons,
        model_version
    from {{ ref('stg_plant_stream__warnings') }}
    where state = 'opened'
),

changed as (
    select
        warning_id,
        min(changed_at) filter (where state = 'acknowledged') as acknowledged_at,
        min(as_of_at) filter (where state = 'closed') as closed_at,
        min(closed_by) filter (where state = 'closed') as closed_by
    from {{ ref('stg_plant_stream__warnings') }}
    group by warning_id
)

select
    o.warning_id,
    o.machine_id,
    o.machine_model,
    o.opened_at,
    c.acknowledged_at,
    c.closed_at,
    coalesce(c.closed_by, '') as closed_by,
    case
        when c.closed_at is not null then 'closed'
        when c.acknowledged_at is not null then 'acknowledged'
        else 'opened'
    end as state,
    o.failure_probability,
    o.remaining_hours,
    o.reasons,
    o.model_version
from opened as o
inner join changed as c on o.warning_id = c.warning_id
