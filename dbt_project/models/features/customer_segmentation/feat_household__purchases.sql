with summed as (
    select
        m.household_id,
        m.as_of_at,
        min(b.transacted_at) as first_transacted_at,
        max(b.transacted_at) as last_transacted_at,
        count(b.basket_id) filter (
            where b.transacted_at >= m.as_of_at - interval 30 days
        ) as baskets_count_30d,
        count(b.basket_id) filter (
            where b.transacted_at >= m.as_of_at - interval 90 days
        ) as baskets_count_90d,
        sum(b.sales_usd) filter (
            where b.transacted_at >= m.as_of_at - interval 30 days
        ) as sales_usd_sum_30d,
        sum(b.sales_usd) filter (
            where b.transacted_at >= m.as_of_at - interval 90 days
        ) as sales_usd_sum_90d,
        count(distinct b.store_id) filter (
            where b.transacted_at >= m.as_of_at - interval 90 days
        ) as stores_count_90d
    from {{ ref('int_household_months__spined') }} as m
    left join {{ ref('int_baskets__summed') }} as b
        on m.household_id = b.household_id and m.as_of_at > b.transacted_at
    group by m.household_id, m.as_of_at
)

select
    household_id,
    as_of_at,
    {{ days_between('first_transacted_at', 'as_of_at') }} as days_since_first_purchase,
    {{ days_between('last_transacted_at', 'as_of_at') }} as days_since_last_purchase,
    baskets_count_30d,
    baskets_count_90d,
    cast(coalesce(sales_usd_sum_30d, 0) as decimal(14, 2)) as sales_usd_sum_30d,
    cast(coalesce(sales_usd_sum_90d, 0) as decimal(14, 2)) as sales_usd_sum_90d,
    cast(sales_usd_sum_90d as double) / nullif(baskets_count_90d, 0) as basket_usd_avg_90d,
    stores_count_90d
from summed
