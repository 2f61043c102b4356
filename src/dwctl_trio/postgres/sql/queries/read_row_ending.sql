-- read_row_ending
-- How a row stands, to learn what became of a commit whose answer was lost.
select state, epoch, error ->> 'type' as error_type from requests where id = :response_id
