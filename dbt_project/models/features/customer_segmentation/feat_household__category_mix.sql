with sales as (
    select
        m.household_id,
        m.as_of_at,
        nullif(cast(sum(b.sales_usd) as double), 0) as sales_usd,
        cast(sum(b.private_label_sales_usd) as double) as private_label_sales_usd,
        cast(sum(b.fresh_sales_usd) as double) as fresh_sales_usd,
        cast(sum(b.grocery_sales_usd) as double) as grocery_sales_usd,
        cast(sum(b.household_sales_usd) as double) as household_sales_usd,
        cast(sum(b.fuel_sales_usd) as double) as fuel_sales_usd,
        cast(sum(b.other_sales_usd) as double) as other_sales_usd
    from {{ ref('int_household_months__spined') }} as m
    left join {{ ref('int_baskets__summed') }} as b
        on
            m.household_id = b.household_id
            and m.as_of_at > b.transacted_at
            and m.as_of_at - interval 90 days <= b.transacted_at
    group by m.household_id, m.as_of_at
),

variety as (
    select
        m.household_id,
        m.as_of_at,
        count(distinct t.product_id) as products_count_90d,
        count(distinct p.department) as departments_count_90d
    from {{ ref('int_household_months__spined') }} as m
    inner join {{ ref('stg_retail_db__transactions') }} as t
        on
            m.household_id = t.household_id
            and m.as_of_at > t.transacted_at
            and m.as_of_at - interval 90 days <= t.transacted_at
    left join {{ ref('stg_retail_db__products') }} as p on t.product_id = p.product_id
    group by m.household_id, m.as_of_at
)

select
    s.household_id,
    s.as_of_at,
    coalesce(v.products_count_90d, 0) as products_count_90d,
    coalesce(v.departments_count_90d, 0) as departments_count_90d,
    s.private_label_sales_usd / s.sales_usd as private_label_share_90d,
    s.fresh_sales_usd / s.sales_usd as fresh_share_90d,
    s.grocery_sales_usd / s.sales_usd as grocery_share_90d,
    s.household_sales_usd / s.sales_usd as household_share_90d,
    s.fuel_sales_usd / s.sales_usd as fuel_share_90d,
    s.other_sales_usd / s.sales_usd as other_share_90d
from sales as s
left join variety as v on s.household_id = v.household_id and s.as_of_at = v.as_of_at
