"""``python -m dwctl_trio``."""

from dwctl_trio.cli import main

main()
