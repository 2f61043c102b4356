-- prune_unstored_events
-- Deletes the events of the next ended rows that are not to be stored, and moves the mark behind them; one commit.
-- What passes is bounded, not what is pruned: a statement that looked for rows with events might look for ever.
with mark as (
    select pruned_until, pruned_id from retention_marks where kind = 'unstored_events' for update skip locked
),
passed as (
    select r.id, r.finished_at, r.store
    from mark as m
    cross join lateral (
        select q.id, q.finished_at, q.store
        from requests as q
        where (q.finished_at, q.id) > (m.pruned_until, m.pruned_id)
            and q.finished_at <= dwctl_now() - make_interval(secs => :age_s)
        order by q.finished_at, q.id
        limit :rows
        for update
    ) as r
),
emptied as (
    update requests set last_sequence = null
    where id = any(array(select p.id from passed as p where not p.store)) and last_sequence is not null
),
deleted as (
    delete from response_events
    where response_id = any(array(select p.id from passed as p where not p.store))
    returning response_id
),
moved as (
    update retention_marks as m set pruned_until = p.finished_at, pruned_id = p.id
    from (select finished_at, id from passed order by finished_at desc, id desc limit 1) as p
    where m.kind = 'unstored_events'
)
select (select count(*) from passed) as passed, (select count(distinct response_id) from deleted) as pruned
