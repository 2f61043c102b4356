-- list_oldest
-- A page of one owner's stored responses, oldest first, behind the last of the page before; nothing behind an unknown one.
with page as (
    select
        r.id, r.state, r.request, r.tools, r.response, r.error, r.created_at,
        row_number() over listed as place,
        sum(octet_length(coalesce(r.response, r.request)::text)) over listed as bytes
    from requests as r
    where r.owner = :owner and r.surface = 'responses' and r.store and r.request is not null
        and (r.created_at, r.id) > (
            case
                when :after::uuid is null then '-infinity'::timestamptz
                else (
                    select r.created_at from requests as r
                    where r.id = :after::uuid
-- include kept
                )
            end,
            coalesce(:after::uuid, '00000000-0000-0000-0000-000000000000')
        )
    window listed as (order by r.created_at, r.id)
    order by r.created_at, r.id
    limit :rows
)
-- include listed
