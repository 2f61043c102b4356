-- 0001 initial
-- Request rows, their steps, the events of finished streams, processes, API keys and usage records.

create table schema_migrations (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);

-- The one clock of all leases and states. Tests move it for their session: set dwctl.clock_offset = '45 seconds'.
create function dwctl_now() returns timestamptz
language sql stable parallel safe
as $$ select now() + coalesce(nullif(current_setting('dwctl.clock_offset', true), ''), '0 seconds')::interval $$;

create table daemons (
    id uuid primary key,
    kind text not null check (kind in ('api', 'worker')),
    host text not null,
    pid integer not null,
    version text not null,
    started_at timestamptz not null default dwctl_now(),
    heartbeat_at timestamptz not null default dwctl_now(),
    stopped_at timestamptz
);

create table api_keys (
    digest bytea primary key check (octet_length(digest) = 32),
    prefix text not null unique,
    owner text not null check (owner <> ''),
    created_at timestamptz not null default dwctl_now(),
    revoked_at timestamptz
);

create table requests (
    id uuid primary key,
    -- identity
    owner text not null check (owner <> ''),
    key_prefix text,
    surface text not null check (surface in ('responses', 'chat')),
    model text not null,
    upstream text not null,
    upstream_model text not null,
    service_tier text not null check (service_tier in ('auto', 'default', 'flex', 'priority')),
    background boolean not null default false,
    stream boolean not null default false,
    store boolean not null default true,
    previous_response_id uuid,
    idempotency_key text,
    -- work
    request json,
    tools json,
    priority integer not null default 0,
    not_before timestamptz,
    deadline timestamptz,
    attempt integer not null default 0 check (attempt >= 0),
    reclaims integer not null default 0 check (reclaims >= 0),
    -- ownership
    state text not null
        constraint requests_state_known
        check (state in ('pending', 'claimed', 'processing', 'completed', 'failed', 'canceled')),
    daemon_id uuid,
    epoch bigint not null default 0 check (epoch >= 0),
    lease_expires_at timestamptz,
    -- outcome
    response_status smallint check (response_status between 100 and 599),
    response json,
    error jsonb check (error is null or (error ? 'type' and error ? 'code' and error ? 'message')),
    created_at timestamptz not null default dwctl_now(),
    started_at timestamptz,
    finished_at timestamptz,
    -- What a row in each state cannot be without: domain/lifecycle.py, REQUIRED_COLUMNS and LEASED_STATES.
    constraint requests_leased_have_owner check (
        (state in ('claimed', 'processing')) = (daemon_id is not null)
        and (state in ('claimed', 'processing')) = (lease_expires_at is not null)
    ),
    constraint requests_started check (state not in ('processing', 'completed') or started_at is not null),
    constraint requests_finished check (
        (state in ('completed', 'failed', 'canceled')) = (finished_at is not null)
        and (state in ('completed', 'failed', 'canceled')) = (response_status is not null)
    ),
    constraint requests_error check ((state = 'failed') = (error is not null)),
    -- store: false leaves identity and metering columns only.
    constraint requests_not_stored check (
        store or not (state in ('completed', 'failed', 'canceled')) or (request is null and response is null)
    )
);

create index requests_by_lease on requests (lease_expires_at) where state in ('claimed', 'processing');
create index requests_by_daemon on requests (daemon_id) where daemon_id is not null;
create index requests_by_owner on requests (owner, created_at desc, id desc);
create unique index requests_by_idempotency_key on requests (owner, idempotency_key) where idempotency_key is not null;

-- Terminal is for ever: the last line behind the guards in every statement. Only retention may still change such a row,
-- and only by emptying what was asked and answered.
create function dwctl_keep_terminal() returns trigger
language plpgsql
as $$
declare
    was jsonb := to_jsonb(old);
    is_now jsonb := to_jsonb(new);
begin
    for i in 0 .. tg_nargs - 1 loop
        if is_now -> tg_argv[i] = 'null' then
            was := was - tg_argv[i];
            is_now := is_now - tg_argv[i];
        end if;
    end loop;
    if was is distinct from is_now then
        raise exception '% % is already %', tg_table_name, old.id, old.state
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    return new;
end
$$;

create trigger requests_terminal_is_for_ever
before update on requests
for each row
when (old.state in ('completed', 'failed', 'canceled'))
execute function dwctl_keep_terminal('request', 'response');

create table response_steps (
    id uuid primary key,
    response_id uuid not null references requests (id) on delete cascade,
    parent_step_id uuid references response_steps (id) on delete cascade,
    sequence integer not null check (sequence >= 1),
    kind text not null check (kind in ('model_call', 'tool_call')),
    state text not null
        constraint response_steps_state_known
        check (state in ('pending', 'processing', 'completed', 'failed', 'canceled')),
    call_id text,
    name text,
    request json,
    result json,
    error jsonb,
    created_at timestamptz not null default dwctl_now(),
    started_at timestamptz,
    finished_at timestamptz,
    constraint response_steps_sequence unique (response_id, sequence),
    constraint response_steps_tool_call check ((kind = 'tool_call') = (call_id is not null and name is not null)),
    constraint response_steps_started check (state not in ('processing', 'completed') or started_at is not null),
    constraint response_steps_finished check (
        (state in ('completed', 'failed', 'canceled')) = (finished_at is not null)
    ),
    constraint response_steps_error check ((state = 'failed') = (error is not null))
);

create trigger response_steps_terminal_is_for_ever
before update on response_steps
for each row
when (old.state in ('completed', 'failed', 'canceled'))
execute function dwctl_keep_terminal('request', 'result');

-- The events of a response as they went over the wire, several in one row.
create table response_events (
    response_id uuid not null references requests (id) on delete cascade,
    first_sequence bigint not null check (first_sequence >= 0),
    last_sequence bigint not null,
    frames bytea not null,
    primary key (response_id, first_sequence),
    check (last_sequence >= first_sequence)
);

-- One row a model call. No reference to requests: what was used outlives what was said.
create table usage_records (
    step_id uuid primary key,
    response_id uuid not null,
    owner text not null,
    model text not null,
    upstream text not null,
    upstream_model text not null,
    service_tier text not null,
    stream boolean not null,
    http_status smallint,
    error_code text,
    started_at timestamptz not null,
    first_token_at timestamptz,
    finished_at timestamptz not null,
    input_tokens bigint check (input_tokens >= 0),
    cached_tokens bigint check (cached_tokens >= 0),
    reasoning_tokens bigint check (reasoning_tokens >= 0),
    output_tokens bigint check (output_tokens >= 0),
    input_price_per_million numeric,
    output_price_per_million numeric,
    currency text
);

create index usage_records_by_time on usage_records (finished_at);
