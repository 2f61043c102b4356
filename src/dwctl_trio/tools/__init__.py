"""The tools that the server runs: HTTP endpoints, behind one guard of where connections may go."""
