{% macro daily_statistics(relation, at, features, subject="''") -%}
    select
        {{ subject }} as subject,
        cast({{ at }} as date) as observed_on,
        {% for name, expression in features.items() %}
            avg(cast({{ expression }} as double)) as mean_of_{{ name }},
            stddev_pop(cast({{ expression }} as double)) as spread_of_{{ name }},
            avg(case when {{ expression }} is null then 1.0 else 0.0 end) as missing_of_{{ name }},
        {% endfor %}
        count(*) as rows_count
    from {{ relation }}
    group by {{ subject }}, cast({{ at }} as date)
{%- endmacro %}

{% macro as_series(days, features, warm_up_days=0) -%}
    {% for name in features %}
        {%- set outer = loop %}
        {%- for statistic in ['mean', 'spread', 'missing'] %}
            select
                subject,
                '{{ name }}' as feature,
                '{{ statistic }}' as statistic,
                observed_on,
                {{ statistic }}_of_{{ name }} as value,
                {{ 'null' if statistic == 'missing' else 'spread_of_' ~ name ~ ' * spread_of_' ~ name }} as variance
            from {{ days }}
            where observed_on >= (select min(observed_on) from {{ days }}) + interval {{ warm_up_days }} days
            {{ 'union all' if not (loop.last and outer.last) }}
        {%- endfor %}
    {%- endfor %}
{%- endmacro %}
