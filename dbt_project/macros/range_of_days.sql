{% macro range_of_days(days) -%}
    range between interval '{{ days - 1 }} days 23 hours 59 minutes 59.999999 seconds' preceding and current row
{%- endmacro %}
