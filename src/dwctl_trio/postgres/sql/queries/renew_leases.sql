-- renew_leases
-- Heartbeat of this process, and new leases for those of its live rows that it still owns; returns these.
with heartbeat as (
    update daemons set heartbeat_at = dwctl_now() where id = :daemon_id
)
update requests set lease_expires_at = dwctl_now() + make_interval(secs => :lease_s)
where id = any(:response_ids::uuid[]) and daemon_id = :daemon_id and state in ('claimed', 'processing')
returning id
