select
    campaign_id,
    campaign_type,
    start_date,
    end_date,
    published_at
from {{ source('raw', 'campaign_api__campaigns') }}
qualify row_number() over (
    partition by campaign_id
    order by
        _loaded_at desc,
        published_at desc,
        start_date desc,
        end_date desc,
        campaign_type desc
) = 1
