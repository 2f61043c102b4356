"""What every benchmark is made of: the processes of a site, the load on them, and the form of a result."""
