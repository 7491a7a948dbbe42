with lines as (
    select
        t.basket_id,
        t.household_id,
        t.store_id,
        t.transacted_at,
        t.sales_usd,
        t.retail_discount_usd,
        t.coupon_discount_usd,
        t.coupon_match_discount_usd,
        p.brand,
        coalesce(c.category_group, 'other') as category_group
    from {{ ref('stg_retail_db__transactions') }} as t
    left join {{ ref('stg_retail_db__products') }} as p on t.product_id = p.product_id
    left join {{ ref('department_categories') }} as c on p.department = c.department
),

summed as (
    select
        basket_id,
        household_id,
        store_id,
        transacted_at,
        count(*) as lines_count,
        count(*) filter (
            where retail_discount_usd > 0 or coupon_discount_usd > 0 or coupon_match_discount_usd > 0
        ) as discounted_lines_count,
        count(*) filter (where coupon_discount_usd > 0) as coupon_lines_count,
        sum(sales_usd) as sales_usd,
        sum(sales_usd) filter (where brand = 'Private') as private_label_sales_usd,
        sum(sales_usd) filter (where category_group = 'fresh') as fresh_sales_usd,
        sum(sales_usd) filter (where category_group = 'grocery') as grocery_sales_usd,
        sum(sales_usd) filter (where category_group = 'household') as household_sales_usd,
        sum(sales_usd) filter (where category_group = 'fuel') as fuel_sales_usd,
        sum(sales_usd) filter (where category_group = 'other') as other_sales_usd,
        sum(retail_discount_usd) as retail_discount_usd,
        sum(coupon_discount_usd) as coupon_discount_usd,
        sum(coupon_match_discount_usd) as coupon_match_discount_usd
    from lines
    group by basket_id, household_id, store_id, transacted_at
)

select
    basket_id,
    household_id,
    store_id,
    transacted_at,
    lines_count,
    discounted_lines_count,
    coupon_lines_count,
    cast(sales_usd as decimal(14, 2)) as sales_usd,
    cast(coalesce(private_label_sales_usd, 0) as decimal(14, 2)) as private_label_sales_usd,
    cast(coalesce(fresh_sales_usd, 0) as decimal(14, 2)) as fresh_sales_usd,
    cast(coalesce(grocery_sales_usd, 0) as decimal(14, 2)) as grocery_sales_usd,
    cast(coalesce(household_sales_usd, 0) as decimal(14, 2)) as household_sales_usd,
    cast(coalesce(fuel_sales_usd, 0) as decimal(14, 2)) as fuel_sales_usd,
    cast(coalesce(other_sales_usd, 0) as decimal(14, 2)) as other_sales_usd,
    cast(retail_discount_usd as decimal(14, 2)) as retail_discount_usd,
    cast(coupon_discount_usd as decimal(14, 2)) as coupon_discount_usd,
    cast(coupon_match_discount_usd as decimal(14, 2)) as coupon_match_discount_usd
from summed
