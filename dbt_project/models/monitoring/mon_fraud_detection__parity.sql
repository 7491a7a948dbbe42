{% set features = ['is_weekend', 'is_night'] %}
{% for measure in
    ['customer_payments_count', 'customer_amount_avg', 'terminal_payments_count', 'terminal_fraud_share'] %}
    {% for days in [1, 7, 30] %}
        {% do features.append(measure ~ '_' ~ days ~ 'd') %}
    {% endfor %}
{% endfor %}

with online as (
    -- The last revision has what late events changed
    select
        *,
        row_number() over (partition by transaction_id order by revision desc) as from_last
    from {{ ref('stg_payments_stream__scores') }}
),

compared as (
    select
        cast(s.transaction_at as date) as payment_date,
        {% for feature in features %}
            case
                when f.transaction_id is null or f.{{ feature }} = s.{{ feature }} then 0
                else 1
            end as {{ feature }}_differs,
        {% endfor %}
        f.transaction_id is null as is_unknown,
        s.revision > 0 as is_corrected
    from online as s
    left join {{ ref('feat_payment__windows') }} as f on s.transaction_id = f.transaction_id
    where s.from_last = 1
)

select
    payment_date,
    count(*) as payments_scored_count,
    count(*) filter (where is_corrected) as payments_corrected_count,
    count(*) filter (where is_unknown) as payments_unknown_count,
    {% for feature in features %}
        cast(sum({{ feature }}_differs) as bigint) as {{ feature }}_mismatches_count,
    {% endfor %}
    cast(
        {% for feature in features %}
            sum({{ feature }}_differs) {{ '+' if not loop.last }}
        {% endfor %}
        as bigint
    ) as mismatches_count
from compared
group by payment_date
