-- finish_response
-- Ends a row that this process owns, with its last steps, their usage records and its last events; one commit.
-- No row back means that the lease is lost, and then nothing was written. Every part finds its row by key: a join
-- may be planned without the index while the tables are small, and the plan is kept.
-- A response that forgets was kept while it was live; nothing of what was said is left in its row and its steps.
with owned as (
    update requests set
        state = :state,
        daemon_id = null,
        lease_expires_at = null,
        epoch = epoch + 1,
        response_status = :response_status,
        response = case when store then :response::json end,
        request = case when store then request end,
        tools = case when store then tools end,
        error = :error,
        last_sequence = coalesce(:last_sequence, last_sequence),
        finished_at = dwctl_now()
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state in ('claimed', 'processing')
    returning id
),
-- include ended_steps,
forgotten as (
    update response_steps set request = null, result = null, error = error || '{"message": ""}'
    where :forgets and response_id = :response_id
        and (state in ('completed', 'failed', 'canceled') or id <> all(:ended_ids::uuid[]))
        and exists (select from owned)
),
-- include metered,
-- include told
select id from owned
