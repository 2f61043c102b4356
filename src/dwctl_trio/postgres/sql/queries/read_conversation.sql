-- read_conversation
-- A stored response of one owner and those that it goes on with, oldest first, with their steps; turn 1 is the response.
-- Every part finds its rows by key, one response after the other: each lateral is kept from being planned as a join,
-- which may be a scan while the tables are small, and the plan is kept.
with recursive turns as (
    (
        select r.id, r.previous_response_id, r.state, 1 as turn,
-- include turn_size
        from requests as r
        where r.id = :response_id
-- include kept
    )
    union all
    select p.id, p.previous_response_id, p.state, t.turn + 1, t.bytes + p.bytes
    from turns as t
    cross join lateral (
        select r.id, r.previous_response_id, r.state,
-- include turn_size
        from requests as r
        where r.id = t.previous_response_id
-- include kept
        limit 1
    ) as p
    where t.turn < :turns_max and t.bytes <= :bytes_max
)
-- include turn_rows
