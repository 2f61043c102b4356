-- find_api_key
-- The owner of a live API key, by its digest.
select owner, prefix from api_keys where digest = :digest and revoked_at is null
