-- find_key_holder
-- The row that holds an idempotency key of one owner, with what its client was told: the body, or all events in order.
select
    r.id,
    r.state,
    r.store and (r.response is not null or r.request is not null) as store,
    r.idempotency_digest,
    case when not r.stream then r.response end as response,
    case when r.stream and r.state in ('completed', 'failed', 'canceled') then (
        select string_agg(e.frames, ''::bytea order by e.first_sequence)
        from response_events as e where e.response_id = r.id
    ) end as frames
from requests as r
where r.owner = :owner and r.idempotency_key = :key
    and (r.response_status is null or r.response_status < 400 or r.background)
