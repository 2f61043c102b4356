-- prune_rows
-- Deletes the oldest ended rows, with whatever is still theirs; usage records stay.
with mark as (
    select kind from retention_marks where kind = 'rows' for update skip locked
),
passed as (
    select r.id
    from requests as r
    where r.finished_at <= dwctl_now() - make_interval(secs => :age_s) and exists (select from mark)
    order by r.finished_at, r.id
    limit :rows
    for update
),
deleted as (
    delete from requests where id = any(array(select p.id from passed as p)) returning id
)
select (select count(*) from passed) as passed, (select count(*) from deleted) as pruned
