-- take_over_response
-- Makes a row whose lease has expired this process's, to be resumed.
update requests set
    daemon_id = :daemon_id,
    epoch = epoch + 1,
    reclaims = reclaims + 1,
    lease_expires_at = dwctl_now() + make_interval(secs => :lease_s)
where id = :response_id and state = 'processing' and lease_expires_at < dwctl_now() and store and request is not null
returning
    owner, key_prefix, request, tools, upstream, upstream_model, epoch,
    floor(extract(epoch from created_at))::bigint as created_at,
    extract(epoch from dwctl_now() - started_at)::double precision as age_s
