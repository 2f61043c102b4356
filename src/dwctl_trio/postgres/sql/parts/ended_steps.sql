-- ended_steps
-- Ends those of the named steps that are open, if the row is owned; of a response that forgets, without what was said.
ended_steps as (
    update response_steps as s set
        state = e.state,
        request = case when not :forgets then s.request end,
        result = e.result::json,
        error = e.error::jsonb,
        finished_at = dwctl_now()
    from unnest(:ended_ids::uuid[], :ended_states::text[], :ended_results::text[], :ended_errors::text[])
        as e (id, state, result, error)
    where s.response_id = :response_id and s.id = e.id and s.state in ('pending', 'processing')
        and exists (select from owned)
)
