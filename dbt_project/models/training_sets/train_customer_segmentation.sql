select
    m.household_id,
    m.as_of_at,
    p.days_since_first_purchase,
    p.days_since_last_purchase,
    p.baskets_count_30d,
    p.baskets_count_90d,
    p.sales_usd_sum_30d,
    p.sales_usd_sum_90d,
    p.basket_usd_avg_90d,
    p.stores_count_90d,
    x.products_count_90d,
    x.departments_count_90d,
    x.private_label_share_90d,
    x.fresh_share_90d,
    x.grocery_share_90d,
    x.household_share_90d,
    x.fuel_share_90d,
    x.other_share_90d,
    d.retail_discount_share_90d,
    d.discounted_lines_share_90d,
    d.coupon_lines_share_90d,
    d.coupon_discount_usd_sum_90d,
    c.mailings_count_365d,
    c.campaigns_redeemed_count_365d,
    c.redemptions_count_365d,
    c.campaign_response_rate_365d,
    t.sales_usd_sum_60d,
    t.sales_usd_sum_prior_60d,
    t.sales_trend_60d,
    g.household_id is not null as has_demographics,
    g.age_band,
    g.income_band,
    g.household_size,
    g.household_composition,
    g.kids_count,
    g.home_ownership,
    g.marital_status
from {{ ref('int_household_months__spined') }} as m
left join {{ ref('feat_household__purchases') }} as p
    on m.household_id = p.household_id and m.as_of_at = p.as_of_at
left join {{ ref('feat_household__category_mix') }} as x
    on m.household_id = x.household_id and m.as_of_at = x.as_of_at
left join {{ ref('feat_household__discounts') }} as d
    on m.household_id = d.household_id and m.as_of_at = d.as_of_at
left join {{ ref('feat_household__campaigns') }} as c
    on m.household_id = c.household_id and m.as_of_at = c.as_of_at
left join {{ ref('feat_household__trend') }} as t
    on m.household_id = t.household_id and m.as_of_at = t.as_of_at
left join {{ ref('stg_retail_db__demographics') }} as g on m.household_id = g.household_id
