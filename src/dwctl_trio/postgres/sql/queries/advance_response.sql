-- advance_response
-- Ends steps of a row that this process owns, with their usage records, and opens the next steps; one commit.
-- A claimed row is at work by that. The lease is extended. No row back means that it is lost, and then nothing was
-- written. What an earlier try has done already, whose answer was lost, stays as it is.
with owned as (
    update requests set
        state = 'processing',
        started_at = coalesce(started_at, dwctl_now()),
        lease_expires_at = dwctl_now() + make_interval(secs => :lease_s)
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state in ('claimed', 'processing')
    returning id
),
-- include ended_steps,
-- include metered,
opened as (
    insert into response_steps (
        id, response_id, parent_step_id, sequence, kind, state, call_id, name, request, started_at
    )
    select
        o.id, :response_id, o.parent_step_id, o.sequence, o.kind, 'processing', o.call_id, o.name, o.request::json,
        dwctl_now()
    from unnest(
        :opened_ids::uuid[], :opened_parents::uuid[], :opened_sequences::integer[], :opened_kinds::text[],
        :opened_call_ids::text[], :opened_names::text[], :opened_requests::text[]
    ) as o (id, parent_step_id, sequence, kind, call_id, name, request)
    where exists (select from owned)
    on conflict (id) do nothing
)
select id from owned
