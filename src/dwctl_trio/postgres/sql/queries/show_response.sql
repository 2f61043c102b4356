-- show_response
-- One finished response at a glance, for the demo.
select
    r.state,
    (select count(*) from response_steps as s where s.response_id = r.id) as steps,
    (select string_agg(distinct s.state, ', ') from response_steps as s where s.response_id = r.id) as step_states,
    (select sum(e.last_sequence - e.first_sequence + 1) from response_events as e where e.response_id = r.id) as events,
    (select sum(octet_length(e.frames)) from response_events as e where e.response_id = r.id) as event_bytes,
    u.input_tokens,
    u.output_tokens,
    (u.input_tokens * u.input_price_per_million + u.output_tokens * u.output_price_per_million) / 1000000 as cost,
    u.currency
from requests as r
inner join usage_records as u on u.response_id = r.id
where r.id = :response_id
