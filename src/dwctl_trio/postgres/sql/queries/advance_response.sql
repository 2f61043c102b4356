-- advance_response
-- Ends steps of a row that this process owns, with their usage records, and opens the next steps; one commit.
-- The lease is extended. No row back means that it is lost, and then nothing was written. What an earlier try has done
-- already, whose answer was lost, stays as it is.
with owned as (
    update requests set lease_expires_at = dwctl_now() + make_interval(secs => :lease_s)
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state = 'processing'
    returning id
),
ended as (
    update response_steps as s set
        state = e.state,
        result = e.result::json,
        error = e.error::jsonb,
        finished_at = dwctl_now()
    from unnest(:ended_ids::uuid[], :ended_states::text[], :ended_results::text[], :ended_errors::text[])
        as e (id, state, result, error)
    where s.response_id = :response_id and s.id = e.id and s.state in ('pending', 'processing')
        and exists (select from owned)
),
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
),
opened as (
    insert into response_steps (
        id, response_id, parent_step_id, sequence, kind, state, call_id, name, request, started_at
    )
    select
        o.id, :response_id, o.parent_step_id, o.sequence, o.kind, 'processing', o.call_id, o.name, o.request::json,
        dwctl_now()
    from unnest(
        :opened_ids::uuid[], :opened_parents::uuid[], :opened_sequences::integer[], :opened_kinds::text[],
        :opened_call_ids::text[], :opened_names::text[], :opened_requests::text[]
    ) as o (id, parent_step_id, sequence, kind, call_id, name, request)
    where exists (select from owned)
    on conflict (id) do nothing
)
select id from owned
