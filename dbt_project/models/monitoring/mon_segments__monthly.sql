with month_sales as (
    -- as_of_at is the end of the month: its revenue is that of the baskets in the month before
    select
        p.as_of_at,
        p.segment_name,
        p.model_version,
        count(distinct p.household_id) as households_count,
        cast(coalesce(sum(b.sales_usd), 0) as decimal(14, 2)) as revenue_usd
    from {{ source('predictions', 'customer_segments') }} as p
    left join {{ ref('int_baskets__summed') }} as b
        on
            p.household_id = b.household_id
            and p.as_of_at > b.transacted_at
            and p.as_of_at - interval 1 month <= b.transacted_at
    group by p.as_of_at, p.segment_name, p.model_version
),

totals as (
    select
        as_of_at,
        sum(households_count) as households_count,
        sum(revenue_usd) as revenue_usd
    from month_sales
    group by as_of_at
)

select
    m.as_of_at,
    m.segment_name,
    m.households_count,
    cast(m.households_count as double) / cast(t.households_count as double) as households_share,
    m.revenue_usd,
    cast(m.revenue_usd as double) / nullif(cast(t.revenue_usd as double), 0) as revenue_share,
    s.description,
    m.model_version
from month_sales as m
inner join totals as t on m.as_of_at = t.as_of_at
left join {{ source('trained_models', 'customer_segmentation__segments') }} as s
    on m.model_version = s.model_version and m.segment_name = s.segment_name
