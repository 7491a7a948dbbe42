{{ config(meta={'dagster': {'ref': {'name': 'mon_landing__counted'}}}) }}
-- Transactions only grow, so every row that landing kept is a staged line, or an older version of one.
with staged as (
    select count(*) as rows_staged from {{ ref('stg_retail_db__transactions') }}
)

select
    l.rows_kept,
    s.rows_staged
from {{ ref('mon_landing__counted') }} as l
cross join staged as s
where l.table_name = 'raw.retail_db__transactions' and l.rows_kept < s.rows_staged
