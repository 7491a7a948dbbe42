select
    product_id,
    manufacturer_id,
    department,
    brand,
    product_category,
    product_type,
    package_size
from {{ source('raw', 'retail_db__products') }}
qualify row_number() over (
    partition by product_id
    order by
        _loaded_at desc,
        manufacturer_id desc,
        department desc,
        brand desc,
        product_category desc,
        product_type desc,
        package_size desc
) = 1
