-- report_usage_by_tool
-- Calls of the server's tools since a moment, a line for each tool; those of deleted responses are gone with them.
select
    name as subject, null as currency, count(*) as calls, count(*) filter (where state <> 'completed') as failures,
    null::bigint as input_tokens, null::bigint as cached_tokens,
    null::bigint as output_tokens, null::bigint as reasoning_tokens, null::numeric as cost
from response_steps
where kind = 'tool_call' and finished_at >= dwctl_now() - make_interval(secs => :since_s)
group by name
order by calls desc, subject
