{% macro micros(value) -%}
    cast(floor({{ value }} * 1e6 + 0.5) as bigint)
{%- endmacro %}
