-- finish_response
-- Ends a row that this process owns, with its last steps, their usage records and the log of its events; one commit.
-- No row back means that the lease is lost, and then nothing was written. Every part finds its row by key: a join
-- may be planned without the index while the tables are small, and the plan is kept.
with ended as (
    update requests set
        state = :state,
        daemon_id = null,
        lease_expires_at = null,
        epoch = epoch + 1,
        response_status = :response_status,
        response = case when store then :response::json end,
        request = case when store then request end,
        error = :error,
        finished_at = dwctl_now()
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state = 'processing'
    returning id
),
ended_steps as (
    update response_steps as s set
        state = e.state,
        result = e.result::json,
        error = e.error::jsonb,
        finished_at = dwctl_now()
    from unnest(:ended_ids::uuid[], :ended_states::text[], :ended_results::text[], :ended_errors::text[])
        as e (id, state, result, error)
    where s.response_id = :response_id and s.id = e.id and s.state in ('pending', 'processing')
        and exists (select from ended)
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
    where exists (select from ended)
    on conflict (step_id) do nothing
),
logged as (
    insert into response_events (response_id, first_sequence, last_sequence, frames)
    select :response_id, 0, :last_sequence, :frames from ended where :frames::bytea is not null
)
select id from ended
