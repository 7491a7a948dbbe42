with starts as (
    select
        machine_id,
        commissioned_at as started_at,
        'commissioning' as started_by
    from {{ ref('stg_plant_db__machines') }}
    union all
    select
        w.machine_id,
        w.performed_at as started_at,
        w.kind as started_by
    from {{ ref('stg_plant_db__maintenance') }} as w
    inner join {{ ref('stg_plant_db__machines') }} as m on w.machine_id = m.machine_id
    where w.kind in ('repair', 'preventive') and w.performed_at > m.commissioned_at
),

episodes as (
    select
        machine_id,
        row_number() over by_time - 1 as episode_number,
        started_at,
        lead(started_at) over by_time as next_started_at,
        lead(max(started_by)) over by_time as next_started_by
    from starts
    group by machine_id, started_at
    window by_time as (partition by machine_id order by started_at)
),

failed as (
    select
        e.machine_id,
        e.episode_number,
        min(f.failed_at) as failed_at
    from episodes as e
    inner join {{ ref('stg_plant_db__failures') }} as f
        on
            e.machine_id = f.machine_id
            and e.started_at < f.failed_at
            and (e.next_started_at >= f.failed_at or e.next_started_at is null)
    group by e.machine_id, e.episode_number
)

select
    e.machine_id,
    cast(e.episode_number as bigint) as episode_number,
    e.started_at,
    coalesce(f.failed_at, e.next_started_at) as ended_at,
    case when f.failed_at is null then e.next_started_by else 'failure' end as ended_by
from episodes as e
left join failed as f on e.machine_id = f.machine_id and e.episode_number = f.episode_number
