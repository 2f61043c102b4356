-- rescue_expired
-- Frees rows whose lease has expired.
-- A queued one waits again; a warm one ends as failed / step_abandoned, with its open steps and usage records. State,
-- epoch and lease are checked again in the updates: a row that was finished or renewed meanwhile is left alone.
with expired as (
    select id, epoch, deadline is not null as is_queued from requests
    where state in ('claimed', 'processing') and lease_expires_at < dwctl_now()
    order by lease_expires_at, id
    limit :rows
    for update skip locked
),
requeued as (
    update requests as r set
        state = 'pending',
        daemon_id = null,
        lease_expires_at = null,
        epoch = r.epoch + 1,
        reclaims = r.reclaims + 1
    from expired as e
    where r.id = e.id and e.is_queued and r.epoch = e.epoch
        and r.state in ('claimed', 'processing') and r.lease_expires_at < dwctl_now()
    returning r.id
),
ended as (
    update requests as r set
        state = 'failed',
        daemon_id = null,
        lease_expires_at = null,
        epoch = r.epoch + 1,
        reclaims = r.reclaims + 1,
        response_status = 500,
        request = case when r.store then r.request end,
        error = :error,
        finished_at = dwctl_now()
    from expired as e
    where r.id = e.id and not e.is_queued and r.epoch = e.epoch
        and r.state in ('claimed', 'processing') and r.lease_expires_at < dwctl_now()
    returning r.id, r.owner, r.model, r.upstream, r.upstream_model, r.service_tier, r.stream
),
ended_steps as (
    update response_steps as s set state = 'failed', error = :error, finished_at = dwctl_now()
    from ended as e
    where s.response_id = e.id and s.state in ('pending', 'processing')
    returning s.id, s.response_id, s.kind, s.started_at
),
metered as (
    insert into usage_records (
        step_id, response_id, owner, model, upstream, upstream_model, service_tier, stream, error_code,
        started_at, finished_at
    )
    select
        s.id, e.id, e.owner, e.model, e.upstream, e.upstream_model, e.service_tier, e.stream, 'step_abandoned',
        coalesce(s.started_at, dwctl_now()), dwctl_now()
    from ended_steps as s
    inner join ended as e on e.id = s.response_id
    where s.kind = 'model_call'
    on conflict (step_id) do nothing
)
select id from requeued
union all
select id from ended
