with mailings as (
    select
        l.household_id,
        l.campaign_id,
        cast(c.start_date as timestamp) as mailed_at,
        greatest(l.published_at, c.published_at) as published_at
    from {{ ref('stg_campaign_api__mailings') }} as l
    inner join {{ ref('stg_campaign_api__campaigns') }} as c on l.campaign_id = c.campaign_id
),

mailed as (
    select
        m.household_id,
        m.as_of_at,
        l.campaign_id
    from {{ ref('int_household_months__spined') }} as m
    inner join mailings as l
        on
            m.household_id = l.household_id
            and m.as_of_at >= l.published_at
            and m.as_of_at > l.mailed_at
            and m.as_of_at - interval 365 days <= l.mailed_at
),

redeemed as (
    select
        m.household_id,
        m.as_of_at,
        r.campaign_id,
        count(*) as redemptions_count
    from {{ ref('int_household_months__spined') }} as m
    inner join {{ ref('stg_campaign_api__redemptions') }} as r
        on
            m.household_id = r.household_id
            and m.as_of_at >= r.published_at
            and m.as_of_at > cast(r.redemption_date as timestamp)
            and m.as_of_at - interval 365 days <= cast(r.redemption_date as timestamp)
    group by m.household_id, m.as_of_at, r.campaign_id
),

mailings_counted as (
    select
        l.household_id,
        l.as_of_at,
        count(*) as mailings_count,
        count(r.campaign_id) as responses_count
    from mailed as l
    left join redeemed as r
        on
            l.household_id = r.household_id
            and l.as_of_at = r.as_of_at
            and l.campaign_id = r.campaign_id
    group by l.household_id, l.as_of_at
),

redemptions_counted as (
    select
        household_id,
        as_of_at,
        count(*) as campaigns_count,
        sum(redemptions_count) as redemptions_count
    from redeemed
    group by household_id, as_of_at
)

select
    m.household_id,
    m.as_of_at,
    coalesce(l.mailings_count, 0) as mailings_count_365d,
    coalesce(r.campaigns_count, 0) as campaigns_redeemed_count_365d,
    cast(coalesce(r.redemptions_count, 0) as bigint) as redemptions_count_365d,
    cast(l.responses_count as double) / l.mailings_count as campaign_response_rate_365d
from {{ ref('int_household_months__spined') }} as m
left join mailings_counted as l on m.household_id = l.household_id and m.as_of_at = l.as_of_at
left join redemptions_counted as r on m.household_id = r.household_id and m.as_of_at = r.as_of_at
