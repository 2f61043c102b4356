"""Values and decisions: pure, without clock, chance or I/O."""
