-- read_connections_max
-- How many connections this PostgreSQL takes from everybody together.
select current_setting('max_connections')::int
