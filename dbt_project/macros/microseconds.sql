{% macro microseconds(moment) -%}
    {{ return(adapter.dispatch('microseconds')(moment)) }}
{%- endmacro %}

{% macro default__microseconds(moment) -%}
    unix_micros({{ moment }})
{%- endmacro %}

{% macro duckdb__microseconds(moment) -%}
    epoch_us({{ moment }})
{%- endmacro %}
