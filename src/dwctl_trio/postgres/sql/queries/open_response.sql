-- open_response
-- Inserts a warm request row as processing, leased to this process, together with its first step; one commit.
with opened as (
    insert into requests (
        id, owner, key_prefix, surface, model, upstream, upstream_model, service_tier, stream, store, request,
        attempt, state, daemon_id, epoch, lease_expires_at, started_at
    )
    values (
        :response_id, :owner, :key_prefix, 'responses', :model, :upstream, :upstream_model, :service_tier, :stream,
        :store, :request, 1, 'processing', :daemon_id, 1, dwctl_now() + make_interval(secs => :lease_s), dwctl_now()
    )
    returning id, created_at
),
first_step as (
    insert into response_steps (id, response_id, sequence, kind, state, started_at)
    select :step_id, opened.id, 1, 'model_call', 'processing', dwctl_now() from opened
)
select floor(extract(epoch from opened.created_at))::bigint as created_at from opened
