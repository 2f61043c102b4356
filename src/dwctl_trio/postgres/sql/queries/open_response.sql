-- open_response
-- Inserts a warm request row as processing, leased to this process, together with its first step; one commit.
-- No row back means that another row holds the idempotency key, and then nothing was written.
with opened as (
    insert into requests (
        id, owner, key_prefix, surface, model, upstream, upstream_model, service_tier, stream, store,
        previous_response_id, request, tools, idempotency_key, idempotency_digest, attempt, state,
        daemon_id, epoch, lease_expires_at, started_at
    )
    values (
        :response_id, :owner, :key_prefix, :surface, :model, :upstream, :upstream_model, :service_tier, :stream,
        :store, :previous_response_id, :request, :tools, :idempotency_key, :idempotency_digest,
        1, 'processing', :daemon_id, 1, dwctl_now() + make_interval(secs => :lease_s), dwctl_now()
    )
    on conflict (owner, idempotency_key)
    where idempotency_key is not null and (response_status is null or response_status < 400 or background)
    do nothing
    returning id, created_at
),
first_step as (
    insert into response_steps (id, response_id, sequence, kind, state, started_at)
    select :step_id, opened.id, 1, 'model_call', 'processing', dwctl_now() from opened
)
select floor(extract(epoch from opened.created_at))::bigint as created_at from opened
