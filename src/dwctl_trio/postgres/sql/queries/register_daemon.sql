-- register_daemon
-- Makes this process known, so that its rows have an owner.
insert into daemons (id, kind, host, pid, version)
values (:daemon_id, :kind, :host, :pid, :version)
