-- watch_leases
-- Those of some rows that this process owns, and which of them somebody wants cancelled.
select id, cancel_requested_at is not null as is_cancel_requested from requests
where id = any(:response_ids::uuid[]) and daemon_id = :daemon_id and state in ('claimed', 'processing')
