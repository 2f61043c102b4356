-- record_migration
-- Notes that a migration was applied.
insert into schema_migrations (version, name) values (:version, :name)
