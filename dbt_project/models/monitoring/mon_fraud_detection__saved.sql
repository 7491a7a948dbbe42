with cards as (
    select
        as_of_at,
        algorithm,
        cast(transaction_at as date) as payment_date,
        customer_id,
        max(score) as score,
        bool_or(label) as is_fraud,
        coalesce(sum(amount) filter (where label), 0) as fraud_amount
    from {{ source('predictions', 'fraud_backtest') }}
    group by as_of_at, algorithm, cast(transaction_at as date), customer_id
),

ranked as (
    select
        *,
        row_number() over (
            partition by as_of_at, algorithm, payment_date
            order by score desc, customer_id asc
        ) as place
    from cards
),

days as (
    select
        c.as_of_at,
        c.algorithm,
        c.payment_date,
        max(i.cost_per_card) as cost_per_card,
        count(*) filter (where c.place <= i.cards_per_day) as cards_investigated_count,
        count(*) filter (where c.is_fraud and c.place <= i.cards_per_day) as cards_found_count,
        count(*) filter (where c.is_fraud) as cards_defrauded_count,
        coalesce(sum(c.fraud_amount) filter (where c.place <= i.cards_per_day), 0) as saved_amount,
        sum(c.fraud_amount) as fraud_amount
    from ranked as c
    cross join {{ ref('fraud_investigation') }} as i
    group by c.as_of_at, c.algorithm, c.payment_date
)

select
    d.as_of_at,
    d.algorithm,
    m.is_champion,
    d.payment_date,
    d.cards_investigated_count,
    d.cards_found_count,
    d.cards_defrauded_count,
    cast(d.saved_amount as decimal(14, 2)) as saved_amount,
    cast(d.fraud_amount as decimal(14, 2)) as fraud_amount,
    cast(d.cards_investigated_count * d.cost_per_card as decimal(14, 2)) as investigation_cost,
    cast(d.saved_amount as double) / nullif(cast(d.fraud_amount as double), 0) as saved_share
from days as d
inner join {{ source('trained_models', 'fraud_detection') }} as m
    on d.as_of_at = m.as_of_at and d.algorithm = m.algorithm
