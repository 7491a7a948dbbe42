with recursive data_range as (
    select
        min(transacted_at) as first_transacted_at,
        max(transacted_at) as last_transacted_at
    from {{ ref('int_baskets__summed') }}
),

month_ends as (
    select
        cast(date_trunc('month', first_transacted_at) as timestamp) + interval 1 month as as_of_at,
        last_transacted_at
    from data_range
    union all
    select
        as_of_at + interval 1 month as as_of_at,
        last_transacted_at
    from month_ends
    where as_of_at < last_transacted_at
),

first_purchases as (
    select
        household_id,
        min(transacted_at) as first_transacted_at
    from {{ ref('int_baskets__summed') }}
    group by household_id
)

select
    f.household_id,
    m.as_of_at
from first_purchases as f
inner join month_ends as m on f.first_transacted_at < m.as_of_at
where m.as_of_at <= m.last_transacted_at
