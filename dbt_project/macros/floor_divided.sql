{% macro floor_divided(whole, by) -%}
    cast(floor(({{ whole }} - mod(mod({{ whole }}, {{ by }}) + {{ by }}, {{ by }})) / {{ by }} + 0.5) as bigint)
{%- endmacro %}
