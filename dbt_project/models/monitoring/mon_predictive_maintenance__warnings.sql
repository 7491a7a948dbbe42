with warnings as (
    select
        'backtest' as source,
        warning_id,
        machine_id,
        machine_model,
        opened_at,
        closed_at,
        closed_by,
        failure_probability,
        reasons,
        model_version
    from {{ source('predictions', 'warning_backtest') }}
    where is_champion
    union all
    select
        'live' as source,
        warning_id,
        machine_id,
        machine_model,
        opened_at,
        closed_at,
        closed_by,
        failure_probability,
        reasons,
        model_version
    from {{ ref('machine_warnings') }}
),

-- The failure that a warning is of: the one that ended the episode, if it came within the horizon or while it was open.
judged as (
    select
        w.*,
        l.label,
        case
            when
                l.label
                or (w.closed_at is null and l.failed_at is not null)
                or w.closed_at >= l.failed_at
                then l.failed_at
        end as failed_at
    from warnings as w
    left join {{ ref('int_machine_hours__labelled') }} as l
        on w.machine_id = l.machine_id and w.opened_at = l.as_of_at
)

select
    j.source,
    j.warning_id,
    j.machine_id,
    j.machine_model,
    j.model_version,
    j.opened_at,
    j.closed_at,
    j.closed_by,
    j.failure_probability,
    j.reasons,
    j.failed_at,
    {{ hours_between('j.opened_at', 'j.failed_at') }} as lead_time_hours,
    case when j.failed_at is not null then true else j.label end as is_true,
    p.callout_cost
from judged as j
cross join {{ ref('maintenance_policy') }} as p
