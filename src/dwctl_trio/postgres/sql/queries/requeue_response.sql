-- requeue_response
-- Hands a queued row of this process back, with its last steps, their usage records and its last events; one commit.
-- No row back means that the lease is lost, and then nothing was written.
with owned as (
    update requests set
        state = 'pending',
        daemon_id = null,
        lease_expires_at = null,
        epoch = epoch + 1,
        attempt = case when :counts then attempt else attempt - 1 end,
        not_before = case when :delay_s::double precision > 0 then dwctl_now() + make_interval(secs => :delay_s) end,
        started_at = case when :last_sequence::bigint is null then started_at else coalesce(started_at, dwctl_now()) end,
        last_sequence = coalesce(:last_sequence, last_sequence)
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state in ('claimed', 'processing')
        and deadline is not null
    returning id
),
-- include ended_steps,
-- include metered,
-- include told
select id from owned
