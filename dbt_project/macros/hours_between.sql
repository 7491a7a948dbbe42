{% macro hours_between(earlier, later) -%}
    cast({{ microseconds(later) }} - {{ microseconds(earlier) }} as double) / 3.6e9
{%- endmacro %}
