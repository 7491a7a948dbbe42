select
    now.as_of_at,
    before.segment_name as from_segment_name,
    now.segment_name as to_segment_name,
    count(*) as households_count
from {{ source('predictions', 'customer_segments') }} as now
inner join {{ source('predictions', 'customer_segments') }} as before
    on
        now.household_id = before.household_id
        and now.as_of_at - interval 1 month = before.as_of_at
group by now.as_of_at, before.segment_name, now.segment_name
