-- 0002 idempotency
-- A key comes with the digest of the body that it was sent with, and is released when its row ends with an HTTP error:
-- the client got no response then, so its next try must make one.

alter table requests add column idempotency_digest bytea check (octet_length(idempotency_digest) = 32);
alter table requests add constraint requests_idempotency check (
    (idempotency_key is null) = (idempotency_digest is null)
);

drop index requests_by_idempotency_key;
create unique index requests_by_idempotency_key on requests (owner, idempotency_key)
where idempotency_key is not null and (response_status is null or response_status < 400);
