-- listed
-- The responses in page as GET shows them, without their bodies once those before them fill the page.
select
    p.id,
    p.state,
    case when w.is_within and p.response is null then p.request end as request,
    case when w.is_within and p.response is null then p.tools end as tools,
    case when w.is_within then p.response end as response,
    p.error,
    floor(extract(epoch from p.created_at))::bigint as created_at,
    w.is_within
from page as p
cross join lateral (select p.place = 1 or p.bytes <= :bytes_max as is_within) as w
order by p.place
