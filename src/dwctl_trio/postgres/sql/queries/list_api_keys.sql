-- list_api_keys
-- All API keys, newest first.
select prefix, owner, created_at, revoked_at from api_keys order by created_at desc, prefix
