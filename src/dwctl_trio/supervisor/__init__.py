"""One server in several processes: who starts them, keeps them running, and ends them.

    run.py       what there is once: the port, the database, the signals
    workers.py   the workers, each started again when it ends
    orders.py    what the supervisor tells a worker, and a worker the supervisor
    worker.py    a worker's own process

A supervisor serves nothing. See ``docs/how-to/run-on-several-cores.md``.
"""

from dwctl_trio.supervisor.run import run_supervisor
from dwctl_trio.supervisor.workers import WorkersFailed

__all__ = ["WorkersFailed", "run_supervisor"]
