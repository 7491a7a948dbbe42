with decided as (
    {% for use_case in ['customer_segmentation', 'fraud_detection', 'predictive_maintenance'] %}
        select
            use_case,
            decision_number,
            decided_at,
            kind,
            action,
            model_version,
            as_of_at,
            champion_before,
            champion_after,
            reason,
            metrics,
            decided_by
        from {{ source('trained_models', use_case ~ '__decisions') }}
        {% if not loop.last %}union all{% endif %}
    {% endfor %}
)

select
    d.*,
    p.budget_per_quarter - count(*) filter (where d.action = 'retraining_requested') over (
        partition by d.use_case
        order by d.decided_at asc range between interval 90 days preceding and current row
    ) as retrainings_left_count
from decided as d
inner join {{ ref('retraining_policy') }} as p on d.use_case = p.use_case
