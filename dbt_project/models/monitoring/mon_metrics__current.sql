with asked as (
    select
        max(last_loaded_at) as newest_at,
        min(last_loaded_at) as oldest_at,
        cast(sum(rows_in) as double) as rows_in,
        cast(sum(rows_quarantined) as double) as rows_quarantined,
        sum(seconds) as seconds
    from {{ ref('mon_landing__counted') }}
),

measured as (
    {% for use_case in ['customer_segmentation', 'fraud_detection', 'predictive_maintenance'] %}
        select
            '{{ use_case }}' as use_case,
            metric,
            value,
            as_of_at as measured_at
        from {{ ref('mon_' ~ use_case ~ '__metrics') }}
        union all
    {% endfor %}
    select
        'system' as use_case,
        'hours_since_landed' as metric,
        {{ hours_between('oldest_at', 'newest_at') }} as value,
        newest_at as measured_at
    from asked
    union all
    select
        'system' as use_case,
        'rows_quarantined_share' as metric,
        rows_quarantined / nullif(rows_in, 0) as value,
        newest_at as measured_at
    from asked
    union all
    select
        'system' as use_case,
        'landing_rows_per_second' as metric,
        rows_in / nullif(seconds, 0) as value,
        newest_at as measured_at
    from asked
),

newest as (
    select
        *,
        row_number() over (partition by use_case, metric order by measured_at desc) as from_last
    from measured
    where value is not null
)

select
    t.use_case,
    t.kind,
    t.metric,
    cast(m.value as double) as value,
    cast(m.measured_at as timestamp) as measured_at,
    t.target,
    t.direction,
    case when t.direction = 'at_least' then m.value >= t.target else m.value <= t.target end as is_met,
    t.owner,
    t.reason,
    t.review_on,
    a.newest_at > cast(t.review_on as timestamp) as is_review_due
from {{ ref('metric_targets') }} as t
cross join asked as a
left join newest as m on t.use_case = m.use_case and t.metric = m.metric and m.from_last = 1
