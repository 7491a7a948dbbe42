{% macro against_targets(use_case) -%}
    select
        cast(m.as_of_at as timestamp) as as_of_at,
        m.metric,
        cast(m.value as double) as value,
        cast(t.target as double) as target,
        t.direction,
        case
            when t.direction = 'at_least' then m.value >= t.target
            else m.value <= t.target
        end as is_met
    from measured as m
    inner join {{ ref('metric_targets') }} as t
        on m.metric = t.metric and t.use_case = '{{ use_case }}'
{%- endmacro %}
