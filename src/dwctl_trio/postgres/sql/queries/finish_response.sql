-- finish_response
-- Ends a row that this process owns, with its last step, its usage record and the log of its events; one commit.
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
ended_step as (
    update response_steps set
        state = :step_state,
        result = :step_result,
        error = :step_error,
        finished_at = dwctl_now()
    where id = :step_id and state = 'processing' and exists (select from ended)
),
metered as (
    insert into usage_records (
        step_id, response_id, owner, model, upstream, upstream_model, service_tier, stream, http_status, error_code,
        started_at, first_token_at, finished_at,
        input_tokens, cached_tokens, reasoning_tokens, output_tokens,
        input_price_per_million, output_price_per_million, currency
    )
    select
        :step_id, :response_id, :owner, :model, :upstream, :upstream_model, :service_tier, :stream, :http_status,
        :error_code,
        dwctl_now() - make_interval(secs => :started_ago_s), dwctl_now() - make_interval(secs => :first_token_ago_s),
        dwctl_now(),
        :input_tokens, :cached_tokens, :reasoning_tokens, :output_tokens,
        :input_price_per_million, :output_price_per_million, :currency
    from ended
),
logged as (
    insert into response_events (response_id, first_sequence, last_sequence, frames)
    select :response_id, 0, :last_sequence, :frames from ended where :frames::bytea is not null
)
select id from ended
