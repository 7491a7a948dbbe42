select
    campaign_id,
    household_id,
    published_at
from {{ source('raw', 'campaign_api__mailings') }}
-- Nothing but the key can change, so the first publication is when the mailing could be known.
qualify row_number() over (
    partition by campaign_id, household_id
    order by published_at, _loaded_at
) = 1
