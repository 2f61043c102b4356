-- read_response
-- One response of one owner, as GET shows it.
select
    id, model, upstream, upstream_model, state, epoch, request, response, error, response_status, store, stream,
    floor(extract(epoch from created_at))::bigint as created_at
from requests
where id = :response_id and owner = :owner and surface = 'responses' and store
