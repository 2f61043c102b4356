-- claim_responses
-- Makes rows that wait this process's, the most urgent first; all of the rules are in the function.
select
-- include claimed_columns
from dwctl_claim(
    :daemon_id, :lease_s, :rows, :models::text[], :models_max::integer[], :other_models_max, :owner_max
) with ordinality
order by ordinality
