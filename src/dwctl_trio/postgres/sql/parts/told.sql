-- told
-- Stores the named segments of events that are not stored, if the row is owned.
told as (
    insert into response_events (response_id, first_sequence, last_sequence, frames)
    select :response_id, s.first_sequence, s.last_sequence, s.frames
    from unnest(:segment_firsts::bigint[], :segment_lasts::bigint[], :segment_frames::bytea[])
        as s (first_sequence, last_sequence, frames)
    where exists (select from owned)
    on conflict (response_id, first_sequence) do nothing
)
