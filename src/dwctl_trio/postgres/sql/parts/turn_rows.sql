-- turn_rows
-- The responses in turns with the steps of their own loops, a row for each step, or one for a response without any.
-- What was asked comes with the first of them, and nothing of what lies beyond the bound; log probabilities never.
select
    t.id as response_id,
    t.previous_response_id,
    t.state as response_state,
    t.turn,
    t.bytes::bigint as stored_bytes,
    case
        when coalesce(c.place, 1) = 1 and (t.turn = 1 or t.bytes <= :bytes_max)
            then (select r.request from requests as r where r.id = t.id)
    end as asked,
    c.id, c.sequence, c.parent_step_id, c.kind, c.state, c.call_id, c.name, c.request, c.result, c.error
from turns as t
left join lateral (
    select
        row_number() over (order by s.sequence) as place,
        s.id, s.sequence, s.parent_step_id, s.kind, s.state, s.call_id, s.name, s.request, s.error,
        split_part(s.result::text, ',"token_logprobs":[', 1)
            || case when strpos(s.result::text, ',"token_logprobs":[') > 0 then '}' else '' end as result
    from response_steps as s
    where s.response_id = t.id and s.parent_step_id is null and (t.turn = 1 or t.bytes <= :bytes_max)
    order by s.sequence
) as c on true
order by t.turn desc, c.sequence
