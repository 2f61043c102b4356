-- read_schema_version
-- The number of the last migration applied.
select coalesce(max(version), 0) from schema_migrations
