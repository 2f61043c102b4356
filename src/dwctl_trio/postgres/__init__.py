"""The store: PostgreSQL through asyncpg, native on Trio."""
