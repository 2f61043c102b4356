-- metered
-- Records what the named model calls used, each once, if the row is owned.
metered as (
    insert into usage_records (
        step_id, response_id, owner, model, upstream, upstream_model, service_tier, stream, http_status, error_code,
        started_at, first_token_at, finished_at,
        input_tokens, cached_tokens, reasoning_tokens, output_tokens,
        input_price_per_million, output_price_per_million, currency
    )
    select
        m.step_id, :response_id, :owner, m.model, m.upstream, m.upstream_model, :service_tier, :stream, m.http_status,
        m.error_code,
        dwctl_now() - make_interval(secs => m.started_ago_s), dwctl_now() - make_interval(secs => m.first_token_ago_s),
        dwctl_now(),
        m.input_tokens, m.cached_tokens, m.reasoning_tokens, m.output_tokens,
        m.input_price_per_million, m.output_price_per_million, m.currency
    from unnest(
        :call_ids::uuid[], :call_models::text[], :call_upstreams::text[], :call_upstream_models::text[],
        :call_http_statuses::smallint[], :call_error_codes::text[], :call_started_ago_s::double precision[],
        :call_first_token_ago_s::double precision[], :call_input_tokens::bigint[], :call_cached_tokens::bigint[],
        :call_reasoning_tokens::bigint[], :call_output_tokens::bigint[], :call_input_prices::numeric[],
        :call_output_prices::numeric[], :call_currencies::text[]
    ) as m (
        step_id, model, upstream, upstream_model, http_status, error_code, started_ago_s, first_token_ago_s,
        input_tokens, cached_tokens, reasoning_tokens, output_tokens,
        input_price_per_million, output_price_per_million, currency
    )
    where exists (select from owned)
    on conflict (step_id) do nothing
)
