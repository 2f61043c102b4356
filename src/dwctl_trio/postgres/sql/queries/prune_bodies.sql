-- prune_bodies
-- Empties the next ended rows of what was asked and answered, and moves the mark behind them; one commit.
-- Their steps go as a whole: why a tool failed is in its own words, too.
with mark as (
    select pruned_until, pruned_id from retention_marks where kind = 'bodies' for update skip locked
),
passed as (
    select r.id, r.finished_at
    from mark as m
    cross join lateral (
        select q.id, q.finished_at
        from requests as q
        where (q.finished_at, q.id) > (m.pruned_until, m.pruned_id)
            and q.finished_at <= dwctl_now() - make_interval(secs => :age_s)
        order by q.finished_at, q.id
        limit :rows
        for update
    ) as r
),
emptied as (
    update requests set request = null, tools = null, response = null, last_sequence = null
    where id = any(array(select p.id from passed as p))
        and (request is not null or tools is not null or response is not null or last_sequence is not null)
    returning id
),
without_steps as (
    delete from response_steps where response_id = any(array(select p.id from passed as p))
),
without_events as (
    delete from response_events where response_id = any(array(select p.id from passed as p))
),
moved as (
    update retention_marks as m set pruned_until = p.finished_at, pruned_id = p.id
    from (select finished_at, id from passed order by finished_at desc, id desc limit 1) as p
    where m.kind = 'bodies'
)
select (select count(*) from passed) as passed, (select count(*) from emptied) as pruned
