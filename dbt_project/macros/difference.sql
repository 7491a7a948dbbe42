{% materialization difference, adapter='duckdb' %}
  {%- set existing = load_cached_relation(this) -%}
  {%- if existing is none or not existing.is_table or should_full_refresh() -%}
    {{ return(materialization_table_duckdb()) }}
  {%- endif -%}
  {%- if is_unaffected() -%}
    {%- do unchanged('UNAFFECTED') -%}
    {{ return({'relations': [this]}) }}
  {%- endif -%}

  {{ run_hooks(pre_hooks, inside_transaction=False) }}
  {%- do run_query(pass_turn()) -%}  {#- while it is computed, which writes nothing, others may write -#}
  {{ run_hooks(pre_hooks, inside_transaction=True) }}
  {%- set made = this.incorporate(path={'identifier': this.identifier ~ '__made'}) -%}
  {%- set here, there = made.include(database=false, schema=false), this -%}
  {%- set sql = get_select_subquery(sql) if config.get('contract').enforced else sql -%}
  {%- call statement('made') -%}
    drop table if exists {{ here }};
    {{ create_table_as(True, made, sql) }}
  {%- endcall -%}
  {%- set shapes = run_query(
      "select (select list((column_name, column_type)) from (describe " ~ here ~ "))"
      ~ " = (select list((column_name, column_type)) from (describe " ~ there ~ "))"
  ) -%}
  {%- if not shapes.columns[0].values()[0] -%}
    {%- do run_query('drop table ' ~ here) -%}
    {%- do adapter.commit() -%}
    {{ return(materialization_table_duckdb()) }}
  {%- endif -%}

  {#- A row is told by its hash, and how often it is there: the same rows in another order are the same. -#}
  {%- set counted = run_query(
      "create or replace temp table differing as"
      ~ " select hash, coalesce(old.times, 0) as old_times from"
      ~ " (select hash(t) as hash, count(*) as times from " ~ there ~ " as t group by all) as old"
      ~ " full join (select hash(t) as hash, count(*) as times from " ~ here ~ " as t group by all) as new"
      ~ " using (hash) where old.times is distinct from new.times;"
      ~ " select count(*), sum(old_times) * 2 > (select count(*) from " ~ there ~ ") from differing"
  ) -%}
  {%- set rows, most = counted.columns[0].values()[0], counted.columns[1].values()[0] -%}
  {%- do adapter.commit() -%}
  {%- if rows == 0 -%}
    {%- do unchanged('UNCHANGED') -%}
  {%- else -%}
    {%- do run_query(take_turn()) -%}
    {%- call statement('deleted') -%}
      delete from {{ there }}
      {%- if not most %} where rowid in (
        select rowid from {{ there }} as t where hash(t) in (select hash from differing)
      ) {%- endif %}
    {%- endcall -%}
    {%- call statement('main') -%}
      insert into {{ there }} by name
      from {{ here }} as t {% if not most %} where hash(t) in (select hash from differing) {% endif %}
    {%- endcall -%}
  {%- endif -%}
  {%- call statement('dropped') -%} drop table {{ here }}; drop table differing {%- endcall -%}
  {{ run_hooks(post_hooks, inside_transaction=True) }}
  {%- do adapter.commit() -%}
  {{ run_hooks(post_hooks, inside_transaction=False) }}
  {{ return({'relations': [this]}) }}
{% endmaterialization %}


{% macro unchanged(why) %}
  {%- do graph.setdefault('unchanged', []).append(model.unique_id) -%}
  {%- call noop_statement('main', why, why, 0) -%} {%- endcall -%}
{% endmacro %}


{% macro is_unaffected() %}
  {#- No `--vars`: they would make dbt parse the whole project again. -#}
  {%- set stale = env_var('WATERSHED_STALE_MODELS', '').split(',') -%}
  {%- if stale == [''] or model.name in stale -%} {{ return(false) }} {%- endif -%}
  {%- for parent in model.depends_on.nodes -%}
    {%- if parent in selected_resources and parent not in graph.get('unchanged', []) -%}
      {{ return(false) }}
    {%- endif -%}
  {%- endfor -%}
  {{ return(true) }}
{% endmacro %}
