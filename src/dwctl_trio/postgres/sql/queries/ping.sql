-- ping
-- Answers if PostgreSQL does.
select 1 as answer
