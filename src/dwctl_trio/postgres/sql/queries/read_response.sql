-- read_response
-- One response of one owner, as GET shows it: its final body, or what it takes to show one that has none.
select
    id,
    state,
    case when response is null then request end as request,
    case when response is null then tools end as tools,
    response,
    error,
    floor(extract(epoch from created_at))::bigint as created_at
from requests
where id = :response_id and owner is not distinct from :owner and surface = 'responses' and store
    and (response is not null or request is not null)
