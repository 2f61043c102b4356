-- 0006 surfaces
-- Completions and embeddings have rows as well, while their calls are under way and for what is known of them later.

alter table requests
    drop constraint requests_surface_check,
    add constraint requests_surface_check check (surface in ('responses', 'chat', 'completions', 'embeddings'));
