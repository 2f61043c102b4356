-- stop_daemon
-- Says that this process ended in good order.
update daemons set stopped_at = dwctl_now() where id = :daemon_id and stopped_at is null returning id
