-- 0005 conversations
-- previous_response_id leads from a stored response to the one that it goes on with, which may be gone by then.

-- Only what GET shows is listed; an owner's other rows would have to be passed by, one after the other.
drop index requests_by_owner;
create index requests_by_owner on requests (owner, created_at desc, id desc)
where surface = 'responses' and store and request is not null;
