-- prune_processes
-- Forgets processes that have given no sign of life for long and own no row; there are few, so that none is indexed.
with mark as (
    select kind from retention_marks where kind = 'processes' for update skip locked
),
passed as (
    select d.id
    from daemons as d
    where d.heartbeat_at <= dwctl_now() - make_interval(secs => :age_s) and exists (select from mark)
        and not exists (select from requests as r where r.daemon_id = d.id)
    order by d.heartbeat_at, d.id
    limit :rows
    for update
),
deleted as (
    delete from daemons where id = any(array(select p.id from passed as p)) returning id
)
select (select count(*) from passed) as passed, (select count(*) from deleted) as pruned
