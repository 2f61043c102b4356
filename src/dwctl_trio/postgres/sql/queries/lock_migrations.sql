-- lock_migrations
-- Waits until no other process migrates; released with the transaction.
select pg_advisory_xact_lock(:lock)
