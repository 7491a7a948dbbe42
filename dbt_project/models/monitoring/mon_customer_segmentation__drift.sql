{% set features = {'basket_usd': 'sales_usd', 'lines_count': 'lines_count'} %}
{% for share in ['discounted_lines', 'coupon_lines'] %}
    {% do features.update({share ~ '_share': share ~ '_count / nullif(cast(lines_count as double), 0)'}) %}
{% endfor %}
{% for share in ['private_label', 'fresh', 'grocery', 'household', 'fuel', 'other'] %}
    {% do features.update({
        share ~ '_share': 'cast(' ~ share ~ '_sales_usd as double) / nullif(cast(sales_usd as double), 0)'
    }) %}
{% endfor %}

with baskets as (
    {{ daily_statistics(ref('int_baskets__summed'), 'transacted_at', features) }}
),

series as (
    {{ as_series('baskets', features) }}
),

{{ drift_verdicts() }}
