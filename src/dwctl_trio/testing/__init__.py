"""PUBLIC building blocks for tests: the simulator, verified fakes, the cancel sweep."""
