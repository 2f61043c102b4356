-- read_clock
-- The time that everything in the database is reckoned by.
select extract(epoch from dwctl_now())::double precision as now
