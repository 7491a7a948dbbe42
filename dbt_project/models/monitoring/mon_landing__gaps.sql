with tables as (
    select
        table_name,
        gap_days
    from {{ source('landing', 'ledger') }}
    qualify row_number() over (partition by table_name order by loaded_at desc, batch_id desc) = 1
),

days as (
    select distinct
        table_name,
        day
    from {{ source('landing', 'days') }}
),

steps as (
    select
        tables.table_name,
        tables.gap_days,
        days.day as last_date_before,
        lead(days.day) over (partition by days.table_name order by days.day) as first_date_after
    from days
    inner join tables on days.table_name = tables.table_name
    where tables.gap_days is not null
)

select
    table_name,
    cast(last_date_before as date) as last_date_before,
    cast(first_date_after as date) as first_date_after,
    {{ days_between('last_date_before', 'first_date_after') }} - 1 as missing_days,
    concat(
        'make reload table=', replace(replace(table_name, 'raw.', ''), '__', '.'),
        ' from=', last_date_before, ' to=', first_date_after
    ) as to_reload
from steps
where {{ days_between('last_date_before', 'first_date_after') }} > gap_days
