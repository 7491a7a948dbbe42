{% macro take_turn() %}{{ return(adapter.dispatch('take_turn')()) }}{% endmacro %}

{% macro default__take_turn() %}{% endmacro %}

{% macro duckdb__take_turn() %}select take_turn(){% endmacro %}


{% macro pass_turn() %}{{ return(adapter.dispatch('pass_turn')()) }}{% endmacro %}

{% macro default__pass_turn() %}{% endmacro %}

{% macro duckdb__pass_turn() %}select pass_turn(){% endmacro %}
