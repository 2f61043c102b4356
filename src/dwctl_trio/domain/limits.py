"""Every bound of the system, in one place.

Rule 1: a queue, body, loop, wait or retry without a field here does not exist.
Rule 2: the unit is the end of the name: ``_s`` seconds, ``_bytes``, ``_items``; plain nouns count things.
Rule 3: each field says why its default is what it is; ``limits:`` in config.yaml changes it by name.

Source: the constants of dwctl 8.62.0 where it had one; figures measured for this project otherwise.
"""

from typing import TypeVar

import attrs

_Number = TypeVar("_Number", int, float)
_CENTURY_S = 36525 * 86400.0
"""How "for ever" is said."""

EMBEDDED_CONNECTIONS = 100
"""That the embedded PostgreSQL takes: eight processes with a full pool each; one that is not open costs nothing."""


def _bounded(default: _Number, *, minimum: _Number, maximum: _Number) -> _Number:
    """A field whose configured value must lie in ``[minimum, maximum]``; its type is the default's."""
    return attrs.field(
        default=default,
        validator=[
            attrs.validators.instance_of(type(default)),
            attrs.validators.ge(minimum),
            attrs.validators.le(maximum),
        ],
        metadata={"minimum": minimum, "maximum": maximum},
    )


@attrs.frozen(kw_only=True)
class Limits:
    """The bounds in force in one process; validated, never changed after start."""

    # -- what a client may send
    request_body_bytes: int = _bounded(16 * 1024 * 1024, minimum=1024, maximum=1024 * 1024 * 1024)
    """Larger bodies are 413. 16 MiB holds a 200k-token history with room for images."""
    request_bodies_bytes: int = _bounded(128 * 1024 * 1024, minimum=2048, maximum=1024 * 1024 * 1024 * 1024)
    """Bodies over 64 KiB, conversations too, of all requests under way; more are 503. Memory: five times as much."""
    request_body_s: float = _bounded(60.0, minimum=1.0, maximum=3600.0)
    """A body that takes longer to arrive is 408."""
    request_depth: int = _bounded(64, minimum=8, maximum=512)
    """Nesting of a JSON body; deeper ones are 400. The decoder's own stack stops at about 1,000."""
    request_brackets: int = _bounded(50_000, minimum=1000, maximum=100_000_000)
    """Opening brackets in a JSON body, those inside texts too; a message costs everybody 10 microseconds."""
    request_header_bytes: int = _bounded(16 * 1024, minimum=1024, maximum=1024 * 1024)
    """Request line and headers together."""

    # -- what may be under way at once
    live_responses: int = _bounded(1000, minimum=1, maximum=1_000_000)
    """Requests for responses in one process; more are 503. A stream costs about 100 kB."""
    owner_responses: int = _bounded(500, minimum=1, maximum=1_000_000)
    """Requests for responses of one owner in one process; more are 429."""
    loop_delay_s: float = _bounded(0.002, minimum=0.001, maximum=60.0)
    """How long a task may wait for its turn before new requests are 503; an answer takes a dozen turns or more."""
    calm_responses: int = _bounded(512, minimum=0, maximum=1_000_000)
    """So many may be under way however long tasks wait: one large body or a pause of the machine is no overload."""
    upstream_waiting: int = _bounded(256, minimum=0, maximum=1_000_000)
    """Requests that wait for a place at one upstream; more are 429 at once."""

    # -- one stream to one client
    event_channel_items: int = _bounded(256, minimum=1, maximum=65536)
    """Batches between loop and SSE writer, the original's number; full means the loop waits for its client."""
    follow_channel_items: int = _bounded(4, minimum=1, maximum=1024)
    """Segments between the store and a follower's SSE writer; each may hold ``segment_bytes``, so they are few."""
    event_log_bytes: int = _bounded(32 * 1024 * 1024, minimum=0, maximum=512 * 1024 * 1024)
    """Frames kept of one response; a longer stream is stored like any other, but cannot be streamed again."""
    head_hold_s: float = _bounded(2.0, minimum=0.0, maximum=60.0)
    """The HTTP head waits this long for the upstream's, so that an early refusal is a real 4xx or 5xx."""
    keep_alive_s: float = _bounded(15.0, minimum=0.05, maximum=300.0)
    """A silent stream gets a comment this often; proxies cut idle connections at 30 s or 60 s."""
    write_progress_s: float = _bounded(30.0, minimum=0.1, maximum=600.0)
    """A client that does not take 64 KiB, or what there is, in this time counts as gone."""
    idle_connection_s: float = _bounded(60.0, minimum=0.1, maximum=3600.0)
    """An HTTP connection without a request, or with half a header, is closed after this."""
    connection_backlog: int = _bounded(1024, minimum=16, maximum=65535)
    """Connections the kernel may hold before we accept them."""

    # -- a request that repeats another one's idempotency key
    idempotency_wait_s: float = _bounded(600.0, minimum=0.0, maximum=86400.0)
    """For the first one to end, then 409; the official SDKs themselves wait for 10 minutes."""
    idempotency_poll_s: float = _bounded(0.25, minimum=0.01, maximum=60.0)
    """Between two looks at the first one's row; each costs a read by key."""

    # -- a conversation, of which each response stores its own turn
    conversation_turns: int = _bounded(1000, minimum=1, maximum=100_000)
    """Responses in one conversation, the new one included; more are 400. Each is two looks by key."""
    conversation_items: int = _bounded(20_000, minimum=1, maximum=10_000_000)
    """Items in one conversation, the new ones included; more are 400. Each costs everybody 15 microseconds."""
    conversation_bytes: int = _bounded(32 * 1024 * 1024, minimum=1024, maximum=1024 * 1024 * 1024)
    """What a request goes on with or refers to, as it is stored; more is 400. Twice the body that could bring it."""
    item_references: int = _bounded(1000, minimum=0, maximum=100_000)
    """References to earlier items in one request; more are 400. All are looked up by one statement."""
    list_bytes: int = _bounded(8 * 1024 * 1024, minimum=1024, maximum=1024 * 1024 * 1024)
    """Responses in one page of a list; a page that would have more ends early, and says that there is more."""

    # -- the queue
    queue_workers: int = _bounded(64, minimum=0, maximum=100_000)
    """Queued responses that one process works on at once; 0: none, others do. Each costs about what a stream costs."""
    queue_model_concurrency: int = _bounded(10, minimum=1, maximum=1_000_000)
    """Queued responses for one model under way at once in all processes together, the original's number."""
    queue_owner_concurrency: int = _bounded(100, minimum=1, maximum=1_000_000)
    """Queued responses of one owner under way at once in all processes together."""
    queue_poll_s: float = _bounded(0.5, minimum=0.02, maximum=60.0)
    """Between two looks for work that nobody has told of; the original's number."""
    queue_overdue_s: float = _bounded(1.0, minimum=0.02, maximum=60.0)
    """Between two looks for what is past its deadline; each is an index scan, and no worker is needed to end it."""
    queue_claim_retry_cap_s: float = _bounded(2.0, minimum=0.02, maximum=60.0)
    """The longest wait after a claim that failed: a database that is back must not wait for the daemon."""
    queue_attempts: int = _bounded(5, minimum=1, maximum=1000)
    """Attempts at one queued response; one that a stopping server broke off does not count."""
    queue_reclaims: int = _bounded(3, minimum=0, maximum=1000)
    """Processes that may die over one queued response before it fails: it may be what kills them."""
    queue_retry_s: float = _bounded(1.0, minimum=0.01, maximum=3600.0)
    """Before the second attempt; doubled for each further one, with jitter. The original's number."""
    queue_retry_cap_s: float = _bounded(60.0, minimum=0.02, maximum=86400.0)
    """The longest wait of our own between two attempts; an upstream's ``Retry-After`` may ask for more."""
    queue_busy_s: float = _bounded(10.0, minimum=0.01, maximum=3600.0)
    """Before a model's server that is over its rate limit, and does not say for how long, is asked again."""
    flex_deadline_s: float = _bounded(3600.0, minimum=1.0, maximum=30 * 86400.0)
    """From its creation a flex response has so long; past it, it fails. The original's number."""
    background_deadline_s: float = _bounded(86400.0, minimum=1.0, maximum=30 * 86400.0)
    """The same for background responses of other tiers; the original's default window."""
    segment_interval_s: float = _bounded(0.1, minimum=0.01, maximum=10.0)
    """Between two writes of a running queued response's events: at most 10 a second."""
    segment_bytes: int = _bounded(256 * 1024, minimum=1024, maximum=64 * 1024 * 1024)
    """Events that wait to be stored; the run waits when there are more, so that a slow database bounds it."""
    queued_event_bytes: int = _bounded(256 * 1024 * 1024, minimum=2048, maximum=16 * 1024 * 1024 * 1024)
    """All events of one queued response, some 200 bytes a token; one that would have more fails."""
    lease_watch_s: float = _bounded(0.5, minimum=0.05, maximum=60.0)
    """Between two looks whether what this process works on is still its own, and wanted."""
    cancel_wait_s: float = _bounded(1.5, minimum=0.01, maximum=60.0)
    """For a worker to end a response that is cancelled; then whoever cancels ends it, with what is stored."""
    cancel_poll_s: float = _bounded(0.03, minimum=0.005, maximum=5.0)
    """Between two looks whether it has."""
    follow_poll_s: float = _bounded(0.5, minimum=0.02, maximum=60.0)
    """Between two looks for events that nobody has told of."""
    follow_segments: int = _bounded(16, minimum=1, maximum=1000)
    """Segments that a follower reads at once."""
    follow_patience_s: float = _bounded(60.0, minimum=0.1, maximum=3600.0)
    """For the database to answer a follower again; then its stream is cut, and it can come back."""

    # -- one call of an upstream
    upstream_connect_s: float = _bounded(5.0, minimum=0.05, maximum=60.0)
    """To open a connection; a healthy host answers in milliseconds."""
    upstream_first_byte_s: float = _bounded(120.0, minimum=0.05, maximum=3600.0)
    """From the request to the first chunk of a stream; the prefill of a long prompt may take a minute."""
    upstream_chunk_s: float = _bounded(60.0, minimum=0.05, maximum=3600.0)
    """Between two chunks; not counted while we wait for our own client."""
    upstream_usage_s: float = _bounded(5.0, minimum=0.0, maximum=60.0)
    """For the usage report after the model has stopped; without it the turn is whole and its usage unknown."""
    upstream_drain_s: float = _bounded(0.005, minimum=0.0, maximum=1.0)
    """For the end of the body after the usage report, so that the connection can be used again."""
    upstream_total_s: float = _bounded(3600.0, minimum=0.1, maximum=86400.0)
    """For the whole call, the original's flex deadline."""
    upstream_idle_connections: int = _bounded(20, minimum=0, maximum=1000)
    """Connections kept open to one upstream; httpx's own transport scans them all with each request."""
    upstream_idle_s: float = _bounded(5.0, minimum=0.0, maximum=3600.0)
    """For one of them to be kept; servers close theirs after 5 s or more, as a rule."""
    upstream_wait_s: float = _bounded(10.0, minimum=0.0, maximum=600.0)
    """For a place at an upstream with ``max_concurrency`` calls under way; then 429."""
    upstream_event_bytes: int = _bounded(1024 * 1024, minimum=1024, maximum=256 * 1024 * 1024)
    """One SSE event of the upstream; counted per event, never per network read."""
    upstream_answer_bytes: int = _bounded(40 * 1024 * 1024, minimum=1024, maximum=1024 * 1024 * 1024)
    """All that one call may answer, as text; more is a failure of the upstream. 2,048 embeddings of 3,072 numbers in
    base64 fit, which are 32 MiB and their frames; as decimal numbers they are four times that."""
    turn_tool_calls: int = _bounded(128, minimum=1, maximum=4096)
    """Tool calls in one model turn, the bound that OpenAI documents for parallel calls."""
    turn_annotations: int = _bounded(1000, minimum=0, maximum=100_000)
    """Annotations of one model turn; further ones are left out. A text of 10,000 words cites no more."""
    upstream_error_bytes: int = _bounded(64 * 1024, minimum=0, maximum=16 * 1024 * 1024)
    """Of an error's body, to learn what was wrong; providers' are below 2 kB, and the status says the rest."""
    upstream_error_s: float = _bounded(1.0, minimum=0.0, maximum=60.0)
    """For that body; it comes with its head, as a rule."""

    # -- the loop of one response
    turns: int = _bounded(10, minimum=1, maximum=1000)
    """Model turns in one response, the original's number; checked after the decision, so answering is free."""
    steps: int = _bounded(1000, minimum=1, maximum=100_000)
    """Durable steps in one response, sub-agents included."""
    tool_calls: int = _bounded(512, minimum=0, maximum=100_000)
    """Calls of server tools in one response, sub-agents' included; four full turns of OpenAI's bound."""
    depth: int = _bounded(8, minimum=0, maximum=64)
    """How deep agents may call agents, the original's number; 0 allows none."""
    response_s: float = _bounded(3600.0, minimum=0.1, maximum=86400.0)
    """All the work on a warm response, from its creation; queued: ``flex_deadline_s``, ``background_deadline_s``."""
    tool_concurrency: int = _bounded(16, minimum=1, maximum=1000)
    """Tools of one response that run at once; agents count by their model calls."""
    agent_concurrency: int = _bounded(4, minimum=1, maximum=1000)
    """Model calls of one response's sub-agents at once; OpenAI's default is 3 agents."""

    # -- one call of a tool
    tool_s: float = _bounded(30.0, minimum=0.05, maximum=3600.0)
    """For one call of a tool that sets no ``timeout_s``, redirects and body included."""
    agent_s: float = _bounded(600.0, minimum=0.05, maximum=86400.0)
    """For one call of an agent that sets no ``timeout_s``."""
    tool_arguments_bytes: int = _bounded(256 * 1024, minimum=64, maximum=16 * 1024 * 1024)
    """Arguments of one call; longer ones are told to the model as invalid."""
    tool_output_bytes: int = _bounded(1024 * 1024, minimum=64, maximum=64 * 1024 * 1024)
    """Output of one call; more is a failure of the tool, for a model would not read it either."""
    tool_redirects: int = _bounded(3, minimum=0, maximum=20)
    """Redirects that one call follows, each checked like the first address."""
    tool_connections: int = _bounded(256, minimum=1, maximum=10_000)
    """Calls of HTTP tools in one process at once; more wait within their own time."""

    # -- the store
    store_connections: int = _bounded(10, minimum=1, maximum=500)
    """Connections to PostgreSQL in one process; measured, group commit gains nothing above 16."""
    store_wait_s: float = _bounded(5.0, minimum=0.05, maximum=60.0)
    """For a free connection, and for a new one to open; then the store counts as unavailable."""
    store_call_s: float = _bounded(5.0, minimum=0.05, maximum=60.0)
    """For one statement; all of them are by key and take about a millisecond."""
    migration_s: float = _bounded(600.0, minimum=1.0, maximum=86400.0)
    """For one migration, or the wait for another process's; later ones may rewrite a large table."""
    terminal_write_s: float = _bounded(10.0, minimum=0.1, maximum=60.0)
    """For the shielded terminal write with its retries; afterwards the rescuer ends the row."""
    terminal_retry_s: float = _bounded(0.25, minimum=0.01, maximum=5.0)
    """Between two tries of the terminal write."""
    lease_s: float = _bounded(30.0, minimum=1.0, maximum=600.0)
    """A row whose lease was not renewed for this long is anybody's to rescue."""
    lease_renewal_s: float = _bounded(10.0, minimum=0.2, maximum=200.0)
    """Between renewals; a third of the lease, so that two may fail."""
    lease_retry_s: float = _bounded(0.05, minimum=0.005, maximum=0.1)
    """Before rows that were locked are renewed again, until all are; a commit holds them for milliseconds."""
    lease_give_up_s: float = _bounded(20.0, minimum=0.5, maximum=400.0)
    """A process that could not renew for this long stops its attempts, before others may take them."""
    rescue_interval_s: float = _bounded(10.0, minimum=0.2, maximum=600.0)
    """Between sweeps for expired leases: lease plus one sweep is the promise of 60 s."""
    rescue_rows: int = _bounded(500, minimum=1, maximum=10_000)
    """Rows one sweep ends at the most, so that it stays a short transaction."""

    # -- what is kept
    unstored_event_s: float = _bounded(60.0, minimum=1.0, maximum=86400.0)
    """Events of an ended ``store: false`` response; whoever waits for it has heard by then. A slower reader is cut."""
    event_retention_s: float = _bounded(86400.0, minimum=30.0, maximum=_CENTURY_S)
    """A finished response can be streamed again, and a stream repeated by its key: a day, as with Stripe."""
    body_retention_s: float = _bounded(30 * 86400.0, minimum=60.0, maximum=_CENTURY_S)
    """What was asked and answered, with its steps, from its end; OpenAI keeps responses for 30 days."""
    row_retention_s: float = _bounded(90 * 86400.0, minimum=90.0, maximum=_CENTURY_S)
    """Who asked which model when, and how it ended: a quarter, to look into a complaint. Then the key is free, too."""
    usage_retention_s: float = _bounded(400 * 86400.0, minimum=60.0, maximum=_CENTURY_S)
    """Usage records, by which people bill: a year, and a month to close its books."""
    process_retention_s: float = _bounded(30 * 86400.0, minimum=3600.0, maximum=_CENTURY_S)
    """A process that has given no sign of life for so long, and owns nothing, is forgotten."""
    retention_interval_s: float = _bounded(60.0, minimum=0.1, maximum=86400.0)
    """Between two sweeps for what is old enough; one that finds nothing is six statements of a millisecond."""
    retention_rows: int = _bounded(100, minimum=1, maximum=10_000)
    """Rows that one statement looks at: 50 ms with bodies of 20 kB. After one that took too long, half as many."""
    retention_batches: int = _bounded(200, minimum=1, maximum=100_000)
    """Such statements of each kind in one sweep: with the above, 300 responses a second are kept up with."""

    # -- wake-ups between processes, which are hints: the poll finds what they miss
    notify_interval_s: float = _bounded(0.01, minimum=0.001, maximum=10.0)
    """Between two statements that wake other processes; what happens meanwhile goes with the next one."""
    notify_topics: int = _bounded(200, minimum=1, maximum=200)
    """Told by one statement; more become one that wakes everybody. 200 of 36 characters fit into 8,000 bytes."""
    listen_retry_s: float = _bounded(0.1, minimum=0.01, maximum=60.0)
    """Before the first new try after a failed NOTIFY, or a lost connection that listens; twice as long each time."""
    listen_retry_cap_s: float = _bounded(5.0, minimum=0.01, maximum=600.0)
    """The longest of these pauses: how late wake-ups are back after PostgreSQL is."""
    listen_check_s: float = _bounded(30.0, minimum=0.05, maximum=3600.0)
    """Between two questions to a connection that listens, without which one that the network lost would stay silent."""

    # -- the process
    shutdown_grace_s: float = _bounded(10.0, minimum=0.0, maximum=600.0)
    """Live streams may go on for this long after SIGTERM before they get a terminal event."""
    tracing_flush_s: float = _bounded(2.0, minimum=0.0, maximum=30.0)
    """For the last spans when the process ends: a collector in reach takes milliseconds, one that is gone all of it."""
    worker_start_s: float = _bounded(60.0, minimum=1.0, maximum=3600.0)
    """For one of several ``workers`` to listen; it takes a second, and then counts as one that ended."""
    worker_restart_s: float = _bounded(0.1, minimum=0.01, maximum=60.0)
    """Before a worker that ended is started again; doubled for each further end in a row."""
    worker_restart_cap_s: float = _bounded(30.0, minimum=0.01, maximum=3600.0)
    """The longest of these pauses: the others serve meanwhile."""
    worker_restarts: int = _bounded(5, minimum=0, maximum=1_000_000)
    """Restarts of one worker in a row; after them the whole server gives up, unless another worker serves."""
    worker_steady_s: float = _bounded(60.0, minimum=0.1, maximum=86400.0)
    """A worker that has listened for so long does not count as one that keeps ending."""
    worker_kill_s: float = _bounded(10.0, minimum=0.1, maximum=600.0)
    """A worker that has not ended so long after all that its end may take is killed: it hangs."""
    worker_metrics_s: float = _bounded(1.0, minimum=0.05, maximum=30.0)
    """For a worker's metrics on their way to the one that is scraped; Prometheus itself waits for 10 s."""
    worker_metrics_bytes: int = _bounded(64 * 1024 * 1024, minimum=1024, maximum=1024 * 1024 * 1024)
    """Of them; a hundred models are less than 1 MB."""
    ready_check_s: float = _bounded(1.0, minimum=0.05, maximum=30.0)
    """For the database's answer to ``/readyz``."""
    key_cache_s: float = _bounded(4.0, minimum=0.0, maximum=5.0)
    """A revoked API key is refused within 5 s."""
    key_cache_entries: int = _bounded(10_000, minimum=1, maximum=1_000_000)
    """API keys kept in memory, known or not; a flood of wrong keys must not grow it."""


DEFAULT_LIMITS = Limits()
"""What holds where the operator's configuration is silent."""


@attrs.frozen
class LimitRule:
    """What some bounds promise another: their sum is below it."""

    smaller: tuple[str, ...]
    larger: str
    reason: str

    def is_kept(self, limits: Limits) -> bool:
        """Whether *limits* keep it."""
        values: dict[str, float] = attrs.asdict(limits)
        return sum(values[name] for name in self.smaller) < values[self.larger]

    def __str__(self) -> str:
        return f"{' + '.join(self.smaller)} < {self.larger}"


LIMIT_RULES = (
    LimitRule(("lease_renewal_s",), "lease_give_up_s", "a process must try to renew before it gives up"),
    LimitRule(("lease_give_up_s",), "lease_s", "a process must stop its attempts before others may take them"),
    LimitRule(
        ("lease_renewal_s", "store_wait_s", "store_call_s"),
        "lease_s",
        "a renewal that waits for a connection and for its answer must still come in time",
    ),
    LimitRule(("request_body_bytes",), "request_bodies_bytes", "a body that is allowed must find room"),
    LimitRule(("terminal_retry_s",), "terminal_write_s", "a terminal write that failed must be tried again"),
    LimitRule(
        ("follow_poll_s", "store_call_s"),
        "unstored_event_s",
        "whoever waits for a response must hear of its end, and read its events, before they go",
    ),
    LimitRule(("segment_bytes",), "queued_event_bytes", "what waits to be stored is a part of what is stored"),
    LimitRule(("queue_retry_s",), "queue_retry_cap_s", "the longest wait between attempts is not the first"),
    LimitRule(("cancel_poll_s",), "cancel_wait_s", "whoever waits for a cancelled response must look at it"),
    LimitRule(
        ("unstored_event_s",), "event_retention_s", "what is not to be stored must not be kept longer than what is"
    ),
    LimitRule(
        ("event_retention_s",), "body_retention_s", "events hold what the body holds, so they must not outlive it"
    ),
    LimitRule(("body_retention_s",), "row_retention_s", "a row must not go before what it holds"),
)
"""All that the bounds promise one another; a configuration that breaks one is refused."""
