-- 0003 queue
-- Responses that wait for a worker: in which order they leave the queue, their events while they run, and their cancel.

alter table requests
    -- The highest number of the stored events; null: none are kept.
    add column last_sequence bigint check (last_sequence >= 0),
    add column cancel_requested_at timestamptz;

-- A running response's row is written with each segment of its events; room on its page keeps that out of the indexes.
alter table requests set (fillfactor = 80);

-- What may still change of a terminal row: the bodies go, and so may the words of an error.
create or replace function dwctl_keep_terminal() returns trigger
language plpgsql
as $$
declare
    was jsonb := to_jsonb(old);
    is_now jsonb := to_jsonb(new);
begin
    for i in 0 .. tg_nargs - 1 loop
        if is_now -> tg_argv[i] = 'null'
            or (tg_argv[i] = 'error' and is_now -> 'error' = (was -> 'error') || '{"message": ""}')
        then
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

drop trigger requests_terminal_is_for_ever on requests;

update requests as r set last_sequence = e.last_sequence
from (
    select response_id, max(last_sequence) as last_sequence from response_events group by response_id
) as e
where r.id = e.response_id;

create trigger requests_terminal_is_for_ever
before update on requests
for each row
when (old.state in ('completed', 'failed', 'canceled'))
execute function dwctl_keep_terminal('request', 'response', 'tools', 'last_sequence');

drop trigger response_steps_terminal_is_for_ever on response_steps;

create trigger response_steps_terminal_is_for_ever
before update on response_steps
for each row
when (old.state in ('completed', 'failed', 'canceled'))
execute function dwctl_keep_terminal('request', 'result', 'error');

-- Whoever asked for a background response has it by then, however it ends.
drop index requests_by_idempotency_key;
create unique index requests_by_idempotency_key on requests (owner, idempotency_key)
where idempotency_key is not null and (response_status is null or response_status < 400 or background);

-- A row with a deadline is a queued one: it is its lifetime, not a connection.
alter table requests
    add constraint requests_queued check (state not in ('pending', 'claimed') or deadline is not null),
    add constraint requests_waiting check (not_before is null or state = 'pending'),
    drop constraint requests_not_stored,
    add constraint requests_not_stored check (
        store or not (state in ('completed', 'failed', 'canceled'))
        or (request is null and tools is null and response is null)
    );

create index requests_ready on requests (priority, model, owner, deadline, id)
where state = 'pending' and not_before is null;
create index requests_put_off on requests (not_before) where state = 'pending' and not_before is not null;
create index requests_overdue on requests (deadline) where state = 'pending' and deadline is not null;
create index requests_under_way on requests (model, owner)
where state in ('claimed', 'processing') and deadline is not null;

-- Nothing looks for the rows of a daemon; but a plan that was made while the table was empty, when all indexes cost the
-- same, would look among them for a row whose id is known.
drop index requests_by_daemon;

-- Makes waiting rows a process's own, and returns them in the order of their urgency. It is a function because who claims
-- has to count, after it got the lock, what all others have claimed, and that takes a second snapshot: here without a
-- second crossing, so that a process that stands still never holds the lock.
--
-- First what is past its deadline, whatever the capacities: it is only to be ended. Then by priority. Within one, owners
-- take turns: a row's turn is what its owner has under way, and its place among the rows of its owner; then by deadline.
-- Only the first rows of each model and owner are looked at, so that the number of rows that wait costs nothing; these
-- groups are found by going from one to the next in the index. If a row of a priority may be claimed, one is: the first
-- of an owner is never cut by its owner's capacity, and the first of those that are left never by its model's. So the
-- priority is asked again until it has none.
--
-- rows_max: at the most. models, models_max: how many of each model may be under way. other_models_max: of every other.
-- owner_max: of each owner.
create function dwctl_claim(
    for_daemon uuid,
    lease_s double precision,
    rows_max integer,
    models text[],
    models_max integer[],
    other_models_max integer,
    owner_max integer
) returns setof requests
language plpgsql
-- One plan for a session, made while the queue may be empty and kept when it is not: so nothing is left to estimates.
-- Where rows are looked for in an order there is one index that has it, and none but the primary key has the id.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
    put_off_max constant integer := 1000;
    moment constant timestamptz := dwctl_now();
    -- Null while there may be rows past their deadline; then a priority.
    urgency integer;
    found_ids uuid[];
    chosen uuid[] := '{}';
    -- What is under way as the claim begins. A place that becomes free meanwhile is the next claim's: this one has passed
    -- by rows that are more urgent than those it still looks at.
    busy_models text[];
    busy_owners text[];
    busy_held bigint[];
begin
    if not exists (select from requests where state = 'pending' and not_before is null)
        and not exists (select from requests where state = 'pending' and not_before <= moment)
        and not exists (select from requests where state = 'pending' and deadline <= moment)
    then
        return;
    end if;
    perform pg_advisory_xact_lock(7236518040291004);

    -- Retries whose time has come join the others, a bounded number at once.
    with due as materialized (
        select id from requests where state = 'pending' and not_before <= moment
        order by not_before, id
        limit put_off_max
        for update skip locked
    )
    update requests set not_before = null where id = any(array(select id from due));

    select array_agg(u.model), array_agg(u.owner), array_agg(u.held) into busy_models, busy_owners, busy_held
    from (
        select model, owner, count(*) as held from requests
        where state in ('claimed', 'processing') and deadline is not null
        group by model, owner
    ) as u;

    while rows_max > 0 loop
        if urgency is null then
            select array_agg(l.id order by l.deadline, l.id) into found_ids
            from (
                select id, deadline from requests where state = 'pending' and deadline <= moment
                order by deadline, id
                limit rows_max
                for update skip locked
            ) as l;
            urgency := -2147483648;
        else
            select priority into urgency from requests
            where state = 'pending' and not_before is null and priority >= urgency
            order by priority
            limit 1;
            exit when not found;

            with recursive groups as (
                (
                    select model, owner from requests
                    where state = 'pending' and not_before is null and priority = urgency
                    order by model, owner
                    limit 1
                )
                union all
                select n.model, n.owner
                from groups as g
                cross join lateral (
                    select r.model, r.owner from requests as r
                    where r.state = 'pending' and r.not_before is null and r.priority = urgency
                        and (r.model, r.owner) > (g.model, g.owner)
                    order by r.model, r.owner
                    limit 1
                ) as n
            ),
            under_way as materialized (
                select u.model, u.owner, sum(u.held)::bigint as held
                from (
                    select b.model, b.owner, b.held
                    from unnest(busy_models, busy_owners, busy_held) as b (model, owner, held)
                    union all
                    select model, owner, 1 from requests where id = any(chosen)
                ) as u
                group by u.model, u.owner
            ),
            model_room as materialized (
                select m.model, coalesce(l.held_max, other_models_max) - coalesce(u.held, 0) as room
                from (select distinct model from groups) as m
                left join unnest(models, models_max) as l (model, held_max) on l.model = m.model
                left join (select model, sum(held)::bigint as held from under_way group by model) as u
                    on u.model = m.model
            ),
            owner_room as materialized (
                select o.owner, coalesce(u.held, 0) as held, owner_max - coalesce(u.held, 0) as room
                from (select distinct owner from groups) as o
                left join (select owner, sum(held)::bigint as held from under_way group by owner) as u
                    on u.owner = o.owner
            ),
            candidates as (
                select
                    g.model, c.deadline, c.id, m.room as model_room, o.room as owner_room, o.held,
                    row_number() over (partition by g.owner order by c.deadline, c.id) as owner_place
                from groups as g
                inner join model_room as m on m.model = g.model and m.room > 0
                inner join owner_room as o on o.owner = g.owner and o.room > 0
                cross join lateral (
                    select r.deadline, r.id from requests as r
                    where r.state = 'pending' and r.not_before is null and r.priority = urgency
                        and r.model = g.model and r.owner = g.owner and r.deadline > moment
                    order by r.deadline, r.id
                    limit least(rows_max, m.room, o.room)
                ) as c
            ),
            allowed as (
                select
                    held + owner_place as turn, deadline, id, model_room,
                    row_number() over (partition by model order by held + owner_place, deadline, id) as model_place
                from candidates
                where owner_place <= owner_room
            ),
            locked as (
                select a.turn, a.deadline, l.id
                from (
                    select turn, deadline, id from allowed where model_place <= model_room order by turn, deadline, id
                ) as a
                cross join lateral (
                    select r.id from requests as r where r.id = a.id and r.state = 'pending' for update skip locked
                ) as l
                limit rows_max
            )
            select array_agg(id order by turn, deadline, id) into found_ids from locked;
            urgency := urgency + (found_ids is null)::integer;
        end if;

        update requests set
            state = 'claimed',
            daemon_id = for_daemon,
            epoch = epoch + 1,
            attempt = attempt + 1,
            lease_expires_at = moment + make_interval(secs => lease_s),
            not_before = null
        where id = any(found_ids);
        chosen := chosen || found_ids;
        rows_max := rows_max - coalesce(cardinality(found_ids), 0);
    end loop;

    return query
    select r.* from requests as r where r.id = any(chosen) order by array_position(chosen, r.id);
end
$$;
