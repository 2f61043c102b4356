-- create_api_key
-- Stores the digest of a new API key.
insert into api_keys (digest, prefix, owner) values (:digest, :prefix, :owner)
