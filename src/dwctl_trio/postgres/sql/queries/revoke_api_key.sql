-- revoke_api_key
-- Revokes a key by its prefix.
update api_keys set revoked_at = dwctl_now() where prefix = :prefix and revoked_at is null returning owner
