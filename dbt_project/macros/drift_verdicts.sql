{% macro drift_verdicts() -%}
    {%- set drift = var('drift') -%}
    newest as (
        select max(observed_on) as observed_on from series
    ),

    as_of_dates as (
        select distinct s.observed_on as last_date
        from series as s
        cross join newest as n
        where
            mod({{ days_between('s.observed_on', 'n.observed_on') }}, 7) = 0
            and s.observed_on > n.observed_on - interval {{ 7 * drift.weeks }} days
    ),

    windows as (
        select
            a.last_date,
            s.*,
            s.observed_on > a.last_date - interval {{ drift.current_days }} days as is_current
        from series as s
        inner join as_of_dates as a
            on
                s.observed_on <= a.last_date
                and s.observed_on
                > a.last_date - interval {{ drift.current_days + drift.gap_days + drift.reference_days }} days
                and not (
                    s.observed_on <= a.last_date - interval {{ drift.current_days }} days
                    and s.observed_on > a.last_date - interval {{ drift.current_days + drift.gap_days }} days
                )
        where s.value is not null
    ),

    centred as (
        select
            *,
            count(*) over in_window as window_count,
            avg(value) over in_window as window_mean,
            value - avg(value) over in_window as deviation,
            row_number() over in_order - 1 as place,
            lag(value) over in_order - avg(value) over in_window as previous_deviation
        from windows
        window
            in_window as (partition by last_date, subject, feature, statistic, is_current),
            in_order as (
                partition by last_date, subject, feature, statistic, is_current
                order by observed_on
            )
    ),

    sized as (
        select
            *,
            least(
                window_count,
                floor(
                    cast(10 * window_count as double)
                    / cast(min(window_count) over (partition by last_date, subject, feature, statistic) as double)
                )
            ) as batches_count
        from centred
    ),

    batches as (
        select
            last_date,
            subject,
            feature,
            statistic,
            is_current,
            floor(cast(place * batches_count as double) / cast(window_count as double)) as batch,
            count(*) as n,
            max(window_mean) as window_mean,
            sum(deviation) as deviation_sum,
            sum(deviation * deviation) as squares_sum,
            coalesce(sum(deviation * previous_deviation), 0) as products_sum,
            sum(value * value) as value_squares_sum,
            sum(variance) as variance_sum
        from sized
        group by
            last_date, subject, feature, statistic, is_current,
            floor(cast(place * batches_count as double) / cast(window_count as double))
    ),

    compared as (
        select
            last_date,
            subject,
            feature,
            statistic,
            cast(sum(case when is_current then n else 0 end) as double) as n_current,
            cast(sum(case when is_current then 0 else n end) as double) as n_reference,
            max(case when is_current then window_mean end) as current_value,
            max(case when is_current then null else window_mean end) as reference_value,
            cast(sum(n) as double) as n,
            cast(count(*) as double) as b,
            sum(squares_sum) as squares_sum,
            sum(products_sum) as products_sum,
            sum(deviation_sum * deviation_sum / n) as batch_squares_sum,
            sum(case when is_current then null else squares_sum end) as reference_squares_sum,
            sum(case when is_current then null else variance_sum end) as reference_variance_sum
        from batches
        group by last_date, subject, feature, statistic
    ),

    -- Autocorrelation of lag one. Its estimate is too small by about (1 + 3 rho) / n per window (Marriott & Pope 1954),
    -- which is added, and a standard error on top: what is underestimated here becomes false alarms.
    correlated as (
        select
            *,
            greatest(0, biased + 2 * (1 + 3 * biased) / n) as rho
        from (
            select
                *,
                coalesce(products_sum / nullif(squares_sum, 0), 0) as biased
            from compared
            where n_current > 1 and n_reference > 1
        ) as estimated
    ),

    -- n days are worth n / tau independent ones. Mean and spread of a feature share the larger: the spread of a slow series
    -- looks faster than it is.
    worth as (
        select
            *,
            case when rho_high < 1 then (1 + rho_high) / (1 - rho_high) end as tau
        from (
            select
                *,
                max(rho + sqrt(greatest(0, 1 - rho * rho) / n))
                    over (partition by last_date, subject, feature, statistic = 'missing') as rho_high
            from correlated
        ) as bounded
    ),

    -- The variance of n days' mean is long_run_variance / n: by the autocorrelation, or by the means of ten batches per
    -- window if that is more, which holds also where the autocorrelation is not that of AR(1).
    estimated_variances as (
        select
            *,
            case
                when n > 2 * tau + 1
                    then greatest(squares_sum * tau / (n - 2 * tau), batch_squares_sum / (b - 2))
            end as long_run_variance,
            coalesce(
                sqrt((reference_variance_sum + reference_squares_sum) / n_reference), 0.1
            ) as scale,
            sqrt(-2 * ln(
                {{ drift.error_rate }} / 2.0 / cast(count(*) over (partition by last_date) as double)
            )) as tail
        from worth
    ),

    -- z: normal quantile, Abramowitz & Stegun 26.2.23, error below 0.00045.
    tested as (
        select
            *,
            sqrt(long_run_variance * (1 / n_current + 1 / n_reference)) as standard_error,
            case
                when long_run_variance = 0 then n
                else squares_sum / (n - 2) * n / long_run_variance
            end as n_effective,
            tail - (2.515517 + 0.802853 * tail + 0.010328 * tail * tail)
            / (1 + 1.432788 * tail + 0.189269 * tail * tail + 0.001308 * tail * tail * tail) as z
        from estimated_variances
    ),

    -- t: Student's quantile from z, Abramowitz & Stegun 26.7.5.
    thresholds as (
        select
            *,
            (
                z
                + (power(z, 3) + z) / (4 * dof)
                + (5 * power(z, 5) + 16 * power(z, 3) + 3 * z) / (96 * dof * dof)
                + (3 * power(z, 7) + 19 * power(z, 5) + 17 * power(z, 3) - 15 * z) / (384 * power(dof, 3))
            ) * standard_error as significant
        from (
            select
                *,
                least(n_effective / 2, b - 2) as dof
            from tested
        ) as freed
    ),

    judged as (
        select
            *,
            current_value - reference_value as difference,
            greatest(significant, {{ drift.minimum_shift }} * scale, 1e-9 * abs(reference_value)) as threshold,
            coalesce(
                n_effective >= {{ drift.minimum_n_effective }}
                and n_current >= 0.8 * {{ drift.current_days }}
                and n_reference >= 0.8 * {{ drift.reference_days }},
                false
            ) as is_tested,
            significant + 1.2816 * standard_error
            <= greatest({{ drift.shift_to_see }} * scale, 1e-9 * abs(reference_value)) as is_powerful
        from thresholds
    )

select
    cast(last_date as timestamp) + interval 1 day as as_of_at,
    subject,
    feature,
    statistic,
    cast(n_current as int) as current_days,
    cast(n_reference as int) as reference_days,
    n_effective,
    reference_value,
    current_value,
    difference,
    case when is_tested then threshold end as threshold,
    scale,
    is_tested and abs(difference) > threshold as is_drifted,
    case
        when is_tested and abs(difference) > threshold then 'drifted'
        when is_tested and is_powerful then 'stable'
        else 'not_enough_data'
    end as verdict
from judged
{%- endmacro %}
