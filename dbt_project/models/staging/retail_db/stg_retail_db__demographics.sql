select
    household_id,
    age as age_band,
    income as income_band,
    home_ownership,
    marital_status,
    household_size,
    household_comp as household_composition,
    kids_count
from {{ source('raw', 'retail_db__demographics') }}
qualify row_number() over (
    partition by household_id
    order by
        _loaded_at desc,
        age desc,
        income desc,
        home_ownership desc,
        marital_status desc,
        household_size desc,
        household_comp desc,
        kids_count desc
) = 1
