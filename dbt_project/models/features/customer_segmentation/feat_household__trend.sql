with summed as (
    select
        m.household_id,
        m.as_of_at,
        coalesce(sum(b.sales_usd) filter (
            where b.transacted_at >= m.as_of_at - interval 60 days
        ), 0) as last_usd,
        coalesce(sum(b.sales_usd) filter (
            where b.transacted_at < m.as_of_at - interval 60 days
        ), 0) as prior_usd
    from {{ ref('int_household_months__spined') }} as m
    left join {{ ref('int_baskets__summed') }} as b
        on
            m.household_id = b.household_id
            and m.as_of_at > b.transacted_at
            and m.as_of_at - interval 120 days <= b.transacted_at
    group by m.household_id, m.as_of_at
)

select
    household_id,
    as_of_at,
    cast(last_usd as decimal(14, 2)) as sales_usd_sum_60d,
    cast(prior_usd as decimal(14, 2)) as sales_usd_sum_prior_60d,
    cast(last_usd - prior_usd as double)
    / nullif(cast(last_usd + prior_usd as double), 0) as sales_trend_60d
from summed
