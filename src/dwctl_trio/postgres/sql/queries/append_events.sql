-- append_events
-- Stores the next events of a row that this process owns; one commit.
-- The row's highest number orders this with everything else that happens to the row, and is what a second try, whose
-- first one's answer was lost, finds done. No row back means that the row is lost, and then nothing was written.
with owned as (
    update requests set last_sequence = :last_sequence, started_at = coalesce(started_at, dwctl_now())
    where id = :response_id and daemon_id = :daemon_id and epoch = :epoch and state in ('claimed', 'processing')
        and (coalesce(last_sequence, -1) = :first_sequence::bigint - 1 or last_sequence = :last_sequence)
    returning id
),
told as (
    insert into response_events (response_id, first_sequence, last_sequence, frames)
    select owned.id, :first_sequence, :last_sequence, :frames from owned
    on conflict (response_id, first_sequence) do nothing
)
select id from owned
