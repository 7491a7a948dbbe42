{% macro sensor_windows(hours) -%}
    {%- set count -%} deviations_count_{{ hours }}h {%- endset -%}
    {%- set total -%} deviation_sum_{{ hours }}h {%- endset -%}
    {%- set near -%}
        cast(floor(cast({{ total }} as double) / cast(nullif({{ count }}, 0) as double)) as decimal(38, 0))
    {%- endset -%}
    cast(readings_count_{{ hours }}h as bigint) as readings_count_{{ hours }}h,
    cast(micros_sum_{{ hours }}h as double) / cast(nullif(readings_count_{{ hours }}h, 0) as double) / 1e6 as value_avg_{{ hours }}h,
    cast(micros_min_{{ hours }}h as double) / 1e6 as value_min_{{ hours }}h,
    cast(micros_max_{{ hours }}h as double) / 1e6 as value_max_{{ hours }}h,
    cast({{ total }} as double) / cast(nullif({{ count }}, 0) as double) / 1e6 as deviation_avg_{{ hours }}h,
    sqrt(
        (
            cast(
                deviation_squares_sum_{{ hours }}h
                - 2 * {{ near }} * {{ total }}
                + {{ count }} * {{ near }} * {{ near }}
                as double
            )
            - cast({{ total }} - {{ count }} * {{ near }} as double)
            * cast({{ total }} - {{ count }} * {{ near }} as double)
            / cast(nullif({{ count }}, 0) as double)
        ) / cast(nullif({{ count }} - 1, 0) as double)
    ) / 1e6 as deviation_std_{{ hours }}h,
    cast({{ count }} * hour_deviation_sum_{{ hours }}h - hour_sum_{{ hours }}h * {{ total }} as double)
    / cast(
        nullif({{ count }} * hour_squares_sum_{{ hours }}h - hour_sum_{{ hours }}h * hour_sum_{{ hours }}h, 0)
        as double
    ) / 1e6 as deviation_slope_{{ hours }}h
{%- endmacro %}
