select
    household_id,
    store_id,
    basket_id,
    product_id,
    quantity,
    sales_value as sales_usd,
    retail_disc as retail_discount_usd,
    coupon_disc as coupon_discount_usd,
    coupon_match_disc as coupon_match_discount_usd,
    transaction_timestamp as transacted_at
from {{ source('raw', 'retail_db__transactions') }}
qualify row_number() over (
    partition by basket_id, product_id
    order by
        _loaded_at desc,
        transaction_timestamp desc,
        household_id desc,
        store_id desc,
        quantity desc,
        sales_value desc,
        retail_disc desc,
        coupon_disc desc,
        coupon_match_disc desc
) = 1
