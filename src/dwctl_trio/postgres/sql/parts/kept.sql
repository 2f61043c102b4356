-- kept
-- A response whose key is known, as far as it is stored and the owner's; written so that no index by owner seems to fit.
and r.owner is not distinct from :owner and r.surface is not distinct from 'responses' and r.store
and r.request is not null
