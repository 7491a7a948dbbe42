select
    household_id,
    coupon_upc,
    campaign_id,
    redemption_date,
    published_at
from {{ source('raw', 'campaign_api__redemptions') }}
-- Nothing but the key can change, so the first publication is when the redemption could be known.
qualify row_number() over (
    partition by household_id, coupon_upc, campaign_id, redemption_date
    order by published_at, _loaded_at
) = 1
