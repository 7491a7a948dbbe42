with summed as (
    select
        m.household_id,
        m.as_of_at,
        sum(b.retail_discount_usd) as retail_discount_usd,
        sum(b.coupon_discount_usd) as coupon_discount_usd,
        sum(
            b.sales_usd
            + b.retail_discount_usd
            + b.coupon_discount_usd
            + b.coupon_match_discount_usd
        ) as undiscounted_usd,
        cast(sum(b.lines_count) as double) as lines_count,
        cast(sum(b.discounted_lines_count) as double) as discounted_lines_count,
        cast(sum(b.coupon_lines_count) as double) as coupon_lines_count
    from {{ ref('int_household_months__spined') }} as m
    left join {{ ref('int_baskets__summed') }} as b
        on
            m.household_id = b.household_id
            and m.as_of_at > b.transacted_at
            and m.as_of_at - interval 90 days <= b.transacted_at
    group by m.household_id, m.as_of_at
)

select
    household_id,
    as_of_at,
    cast(retail_discount_usd as double)
    / nullif(cast(undiscounted_usd as double), 0) as retail_discount_share_90d,
    discounted_lines_count / lines_count as discounted_lines_share_90d,
    coupon_lines_count / lines_count as coupon_lines_share_90d,
    cast(coalesce(coupon_discount_usd, 0) as decimal(14, 2)) as coupon_discount_usd_sum_90d
from summed
