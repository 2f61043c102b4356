-- enqueue_response
-- Inserts a queued row as pending, together with its first events; one commit.
-- No row back means that the id is there already, or that another row holds the idempotency key; nothing was written.
with enqueued as (
    insert into requests (
        id, owner, key_prefix, surface, model, upstream, upstream_model, service_tier, background, stream, store,
        previous_response_id, request, tools, idempotency_key, idempotency_digest, priority, created_at, deadline,
        state, last_sequence
    )
    values (
        :response_id, :owner, :key_prefix, :surface, :model, :upstream, :upstream_model, :service_tier, :background,
        :stream, :store, :previous_response_id, :request, :tools, :idempotency_key, :idempotency_digest, :priority,
        to_timestamp(:created_at), to_timestamp(:created_at) + make_interval(secs => :deadline_s), 'pending',
        :last_sequence
    )
    on conflict do nothing
    returning id
),
opening as (
    insert into response_events (response_id, first_sequence, last_sequence, frames)
    select enqueued.id, :first_sequence, :last_sequence, :frames from enqueued where :last_sequence::bigint is not null
)
select id from enqueued
