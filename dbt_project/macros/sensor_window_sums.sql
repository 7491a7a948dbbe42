{% macro sensor_window_sums(hours) -%}
    coalesce(sum(readings_count) over last_{{ hours }}h, 0) as readings_count_{{ hours }}h,
    sum(micros_sum) over last_{{ hours }}h as micros_sum_{{ hours }}h,
    min(micros_min) over last_{{ hours }}h as micros_min_{{ hours }}h,
    max(micros_max) over last_{{ hours }}h as micros_max_{{ hours }}h,
    cast(sum(deviations_count) over last_{{ hours }}h as decimal(38, 0)) as deviations_count_{{ hours }}h,
    sum(deviation_sum) over last_{{ hours }}h as deviation_sum_{{ hours }}h,
    sum(deviation_squares_sum) over last_{{ hours }}h as deviation_squares_sum_{{ hours }}h,
    cast(sum(deviations_count * hour_number) over last_{{ hours }}h as decimal(38, 0)) as hour_sum_{{ hours }}h,
    cast(
        sum(deviations_count * hour_number * hour_number) over last_{{ hours }}h as decimal(38, 0)
    ) as hour_squares_sum_{{ hours }}h,
    sum(deviation_sum * hour_number) over last_{{ hours }}h as hour_deviation_sum_{{ hours }}h
{%- endmacro %}
