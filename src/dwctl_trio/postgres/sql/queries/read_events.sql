-- read_events
-- How a row of one owner stands, and its next segments of events, in one snapshot; without any there is still a row.
-- The segment that holds the next event is found by its beginning, as nothing is indexed by its end.
select
    r.state,
    r.deadline is not null as is_queued,
    r.store,
    r.response_status,
    r.error,
    r.last_sequence,
    e.first_sequence as segment_first,
    e.last_sequence as segment_last,
    e.frames
from requests as r
left join lateral (
    select s.first_sequence, s.last_sequence, s.frames from response_events as s
    where s.response_id = r.id and s.last_sequence > :after
        and s.first_sequence >= coalesce(
            (
                select max(b.first_sequence) from response_events as b
                where b.response_id = r.id and b.first_sequence <= :after::bigint + 1
            ),
            0
        )
    order by s.first_sequence
    limit :segments
) as e on true
where r.id = :response_id and r.owner is not distinct from :owner
order by e.first_sequence
