with arrived as (
    select
        table_name,
        day,
        sum(rows_arrived) as rows_count
    from {{ source('landing', 'days') }}
    group by table_name, day
),

-- The newest day may still be arriving: the one before it is the newest that is whole.
tested as (
    select
        table_name,
        day as tested_date,
        cast(rows_count as double) as rows_count
    from (
        select
            *,
            row_number() over (partition by table_name order by day desc) as from_last
        from arrived
    ) as ordered
    where from_last = 2
),

-- The same weekday of the eight weeks before, the tested day not among them.
baselines as (
    select
        t.table_name,
        t.tested_date,
        t.rows_count,
        cast(a.rows_count as double) as baseline_rows_count,
        median(cast(a.rows_count as double)) over (partition by t.table_name) as expected_rows_count
    from tested as t
    left join arrived as a
        on
            t.table_name = a.table_name
            and t.tested_date > a.day
            and t.tested_date - interval 56 days <= a.day
            and mod({{ days_between('a.day', 't.tested_date') }}, 7) = 0
),

summed as (
    select
        table_name,
        tested_date,
        rows_count,
        expected_rows_count,
        count(baseline_rows_count) as baseline_days_count,
        median(abs(baseline_rows_count - expected_rows_count)) as median_deviation
    from baselines
    group by table_name, tested_date, rows_count, expected_rows_count
),

-- How long the table had been without a new row when it was last asked; and how long before that, at most.
silences as (
    select
        table_name,
        max(loaded_at) as asked_at,
        max(case when has_rows then loaded_at end) as last_rows_at,
        min(case when has_rows then loaded_at end) as first_rows_at,
        count(case when has_rows then before_at end) as silences_count,
        max(case when has_rows then {{ hours_between('before_at', 'loaded_at') }} end) as longest_silence_hours
    from (
        select
            *,
            lag(loaded_at) over (partition by table_name, has_rows order by loaded_at) as before_at
        from (
            select
                table_name,
                loaded_at,
                rows_in > rows_deduplicated as has_rows
            from {{ source('landing', 'ledger') }}
        ) as asked
    ) as ordered
    group by table_name
),

judged as (
    select
        s.table_name,
        v.tested_date,
        v.rows_count,
        v.expected_rows_count,
        v.baseline_days_count,
        s.last_rows_at,
        {{ hours_between('s.last_rows_at', 's.asked_at') }} as silence_hours,
        s.longest_silence_hours,
        greatest(
            6 * 1.4826 * v.median_deviation, 6 * sqrt(v.expected_rows_count), 0.3 * v.expected_rows_count
        ) as threshold,
        coalesce(v.baseline_days_count >= 4, false) as has_baseline,
        coalesce(
            s.silences_count >= 5 and {{ hours_between('s.first_rows_at', 's.last_rows_at') }} >= 28 * 24, false
        ) as has_history
    from silences as s
    left join summed as v on s.table_name = v.table_name
)

select
    table_name,
    cast(tested_date as date) as tested_date,
    cast(rows_count as bigint) as rows_count,
    expected_rows_count,
    cast(baseline_days_count as int) as baseline_days_count,
    threshold,
    has_baseline and abs(rows_count - expected_rows_count) > threshold as is_anomalous,
    case
        when not has_baseline then 'not_enough_data'
        when abs(rows_count - expected_rows_count) > threshold then 'anomalous'
        else 'normal'
    end as verdict,
    last_rows_at,
    silence_hours,
    longest_silence_hours,
    has_history and silence_hours > greatest(24, 2 * longest_silence_hours) as is_stale,
    case
        when not has_history then 'not_enough_data'
        when silence_hours > greatest(24, 2 * longest_silence_hours) then 'stale'
        else 'fresh'
    end as freshness
from judged
