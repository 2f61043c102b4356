-- request_cancel
-- Notes that a response of one owner is to end, unless it has; returns its state.
with noted as (
    update requests set cancel_requested_at = dwctl_now()
    where id = :response_id and owner is not distinct from :owner and state in ('pending', 'claimed', 'processing')
        and cancel_requested_at is null
)
select state from requests where id = :response_id and owner is not distinct from :owner
