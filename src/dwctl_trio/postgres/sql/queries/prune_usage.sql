-- prune_usage
-- Deletes the oldest usage records.
with mark as (
    select kind from retention_marks where kind = 'usage' for update skip locked
),
passed as (
    select u.step_id
    from usage_records as u
    where u.finished_at <= dwctl_now() - make_interval(secs => :age_s) and exists (select from mark)
    order by u.finished_at
    limit :rows
    for update
),
deleted as (
    delete from usage_records where step_id = any(array(select p.step_id from passed as p)) returning step_id
)
select (select count(*) from passed) as passed, (select count(*) from deleted) as pruned
