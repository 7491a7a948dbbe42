{{ config(meta={'dagster': {'ref': {'name': 'int_baskets__summed'}}}) }}

with lines as (
    select
        basket_id,
        count(*) as lines_count,
        sum(sales_usd) as sales_usd,
        sum(retail_discount_usd) as retail_discount_usd,
        sum(coupon_discount_usd) as coupon_discount_usd
    from {{ ref('stg_retail_db__transactions') }}
    group by basket_id
)

select
    l.basket_id as lines_basket_id,
    b.basket_id
from lines as l
full outer join {{ ref('int_baskets__summed') }} as b on l.basket_id = b.basket_id
where
    l.basket_id is null
    or b.basket_id is null
    or l.lines_count <> b.lines_count
    or l.sales_usd <> b.sales_usd
    or l.retail_discount_usd <> b.retail_discount_usd
    or l.coupon_discount_usd <> b.coupon_discount_usd
    or b.sales_usd <> b.fresh_sales_usd + b.grocery_sales_usd + b.household_sales_usd
    + b.fuel_sales_usd + b.other_sales_usd
