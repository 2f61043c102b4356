-- read_claimed_steps
-- The steps of a row that this process has claimed, in order, whether or not they are to be stored.
select id, sequence, parent_step_id, kind, state, call_id, name, request, result, error
from response_steps
where response_id = :response_id
order by sequence
