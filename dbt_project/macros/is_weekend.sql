{% macro is_weekend(moment) -%}
    {{ return(adapter.dispatch('is_weekend')(moment)) }}
{%- endmacro %}

{% macro default__is_weekend(moment) -%}
    weekday({{ moment }}) >= 5
{%- endmacro %}

{% macro duckdb__is_weekend(moment) -%}
    isodow({{ moment }}) >= 6
{%- endmacro %}
