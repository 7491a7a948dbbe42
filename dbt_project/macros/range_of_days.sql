{% macro range_of_days(days) -%}
    range between {{ days * 24 * 60 * 60 * 1000000 - 1 }} preceding and current row
{%- endmacro %}
