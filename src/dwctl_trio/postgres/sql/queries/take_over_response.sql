-- take_over_response
-- Makes a row that is to be cancelled this process's, to end it: it waits, or nobody works on it, or too slowly.
update requests set
    state = case when state = 'pending' then 'claimed' else state end,
    daemon_id = :daemon_id,
    epoch = epoch + 1,
    attempt = case when state = 'pending' then attempt + 1 else attempt end,
    lease_expires_at = dwctl_now() + make_interval(secs => :lease_s),
    not_before = null
where id = :response_id and request is not null and cancel_requested_at is not null
    and (
        state = 'pending'
        or (
            state in ('claimed', 'processing')
            and (
                lease_expires_at < dwctl_now()
                or cancel_requested_at <= dwctl_now() - make_interval(secs => :patience_s)
            )
        )
    )
returning
-- include claimed_columns
