with segment_sizes as (
    select
        as_of_at,
        min(households_share) as smallest_segment_share,
        max(households_share) as largest_segment_share
    from {{ ref('mon_segments__monthly') }}
    group by as_of_at
),

kept as (
    select
        as_of_at,
        cast(sum(case when from_segment_name = to_segment_name then households_count else 0 end) as double)
        / cast(sum(households_count) as double) as households_kept_share
    from {{ ref('mon_segments__migrated') }}
    group by as_of_at
),

quarantined as (
    select
        cast(sum(rows_quarantined) as double)
        / nullif(cast(sum(rows_in) as double), 0) as rows_quarantined_share
    from {{ ref('mon_landing__counted') }}
),

measured as (
    select
        as_of_at,
        'silhouette' as metric,
        silhouette as value
    from {{ source('trained_models', 'customer_segmentation') }}
    union all
    select
        as_of_at,
        'smallest_segment_share' as metric,
        smallest_segment_share as value
    from segment_sizes
    union all
    select
        as_of_at,
        'largest_segment_share' as metric,
        largest_segment_share as value
    from segment_sizes
    union all
    select
        as_of_at,
        'households_kept_share' as metric,
        households_kept_share as value
    from kept
    union all
    select
        s.as_of_at,
        'rows_quarantined_share' as metric,
        q.rows_quarantined_share as value
    from (select max(as_of_at) as as_of_at from segment_sizes) as s
    cross join quarantined as q
)

{{ against_targets('customer_segmentation') }}
