-- renew_leases
-- Heartbeat of this process, and new leases for those of its live rows that it still owns; returns these.
-- A row that somebody has locked is not waited for, or one lock would cost all the others their leases; it is returned
-- as not renewed.
with heartbeat as (
    update daemons set heartbeat_at = dwctl_now() where id = :daemon_id
),
owned as (
    select id from requests
    where id = any(:response_ids::uuid[]) and daemon_id = :daemon_id and state in ('claimed', 'processing')
),
free as (
    select id from requests
    where id = any(:response_ids::uuid[]) and daemon_id = :daemon_id and state in ('claimed', 'processing')
    for update skip locked
),
renewed as (
    update requests set lease_expires_at = dwctl_now() + make_interval(secs => :lease_s)
    where id in (select id from free)
    returning id
)
select owned.id, renewed.id is not null as is_renewed
from owned left join renewed on renewed.id = owned.id
