-- turn_size
-- What a response takes up in a conversation: what was asked, and what came of the steps of its own loop.
-- Log probabilities are passed over, which is work too: they count as a 64th.
octet_length(r.request::text) + coalesce(
    (
        select sum(k.bytes + (octet_length(s.result::text) - k.bytes) / 64)
        from response_steps as s
        cross join lateral (
            select octet_length(split_part(s.result::text, ',"token_logprobs":[', 1)) as bytes
        ) as k
        where s.response_id = r.id and s.parent_step_id is null
    ),
    0
)::bigint as bytes
