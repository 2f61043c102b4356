-- report_usage_by_model
-- Calls, tokens and cost since a moment, a line for each model and currency.
select
    model as subject, currency, count(*) as calls, count(error_code) as failures,
    sum(input_tokens)::bigint as input_tokens, sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens, sum(reasoning_tokens)::bigint as reasoning_tokens,
    sum((input_tokens * input_price_per_million + output_tokens * output_price_per_million) / 1000000) as cost
from usage_records
where finished_at >= dwctl_now() - make_interval(secs => :since_s)
group by model, currency
order by cost desc nulls last, calls desc, subject
