-- 0004 retention
-- What is old enough is pruned: events, then bodies with their steps, then rows.

-- In the order in which rows come of age.
create index requests_by_end on requests (finished_at, id) where finished_at is not null;

-- A step that is deleted takes its sub-agents' steps with it; without this, each would be a scan of all steps.
create index response_steps_by_parent on response_steps (parent_step_id) where parent_step_id is not null;

-- One row a kind: how far it has come, and whose lock makes one process at a time prune it.
create table retention_marks (
    kind text primary key,
    -- The end and the id of the last request row that was looked at; kinds whose rows are deleted need to know none.
    pruned_until timestamptz not null default '-infinity',
    pruned_id uuid not null default '00000000-0000-0000-0000-000000000000'
);

insert into retention_marks (kind)
values ('unstored_events'), ('events'), ('bodies'), ('rows'), ('usage'), ('processes');
