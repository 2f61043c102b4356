-- find_turns
-- The stored responses of one owner that are named, or of which a step of their own loop is, with their steps.
with made as (
    select m.id from unnest(:maker_ids::uuid[]) as m (id)
    union
    select s.response_id
    from unnest(:maker_ids::uuid[]) as m (id)
    cross join lateral (
        select response_id from response_steps where id = m.id and parent_step_id is null limit 1
    ) as s
),
found as (
    select f.id, f.previous_response_id, f.state, f.bytes
    from made as m
    cross join lateral (
        select r.id, r.previous_response_id, r.state,
-- include turn_size
        from requests as r
        where r.id = m.id
-- include kept
        limit 1
    ) as f
),
turns as (
    select
        id, previous_response_id, state, row_number() over (order by id) as turn,
        sum(bytes) over (order by id) as bytes
    from found
)
-- include turn_rows
