-- delete_response
-- Deletes one stored, finished response of one owner with its steps and events; usage records stay.
delete from requests
where id = :response_id and owner is not distinct from :owner and surface = 'responses' and store
    and state in ('completed', 'failed', 'canceled')
returning id
