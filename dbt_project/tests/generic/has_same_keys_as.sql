{% test has_same_keys_as(model, other, columns) %}

(
    select {{ columns | join(', ') }} from {{ model }}
    except all
    select {{ columns | join(', ') }} from {{ other }}
)
union all
(
    select {{ columns | join(', ') }} from {{ other }}
    except all
    select {{ columns | join(', ') }} from {{ model }}
)

{% endtest %}
