-- read_steps
-- The chain of one response of one owner, in order.
select
    s.id, s.sequence, s.parent_step_id, s.kind, s.state, s.call_id, s.name, s.request, s.result, s.error
from response_steps as s
where s.response_id = :response_id
    and exists (
        select from requests as r
        where r.id = :response_id and r.owner is not distinct from :owner and r.surface = 'responses' and r.store
    )
order by s.sequence
