{{ config(meta={'dagster': {'ref': {'name': 'mon_segments__monthly'}}}) }}

with months as (
    select
        as_of_at,
        sum(revenue_usd) as revenue_usd
    from {{ ref('mon_segments__monthly') }}
    group by as_of_at
),

totals as (
    select
        m.as_of_at,
        m.revenue_usd,
        sum(t.sales_usd) as sales_usd
    from months as m
    left join {{ ref('stg_retail_db__transactions') }} as t
        on m.as_of_at > t.transacted_at and m.as_of_at - interval 1 month <= t.transacted_at
    group by m.as_of_at, m.revenue_usd
)

select * from totals
where revenue_usd <> coalesce(sales_usd, 0)
