-- find_schema_migrations
-- Whether the database has ever been migrated.
select to_regclass('schema_migrations') is not null
