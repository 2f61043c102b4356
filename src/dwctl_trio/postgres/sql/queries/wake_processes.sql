-- wake_processes
-- Tells every process that listens; a transaction of its own, because NOTIFY makes those that commit with it queue up.
select pg_notify(:channel, :payload)
