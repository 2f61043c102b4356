-- read_told
-- All stored events of a row that this process has claimed.
select string_agg(frames, ''::bytea order by first_sequence) as frames
from response_events
where response_id = :response_id
