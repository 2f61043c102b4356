"""A worker's own process: ``python -m dwctl_trio.supervisor.worker``, started by the supervisor and by nobody else."""

from functools import partial

import trio

from dwctl_trio.app import run_api
from dwctl_trio.command import prepare_process, run_command
from dwctl_trio.observability.log import configure_logging
from dwctl_trio.process import Worker
from dwctl_trio.supervisor.orders import StartOrder, follow_orders, read_start, tell_ready


def main() -> None:
    """Serve as the order on standard input says, until it says otherwise."""
    order = read_start()
    if order is None:
        return
    number = order.place.number
    configure_logging(level=order.config.log_level, worker=number)
    prepare_process()
    run_command(run_worker, order, config=order.config, name=f"dwctl-trio: worker {number}")


async def run_worker(order: StartOrder) -> None:
    """Serve, and tell the supervisor when it can be seen."""
    worker = Worker(place=order.place, follow_orders=follow_orders)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run_api, order.config, worker=worker), name="api")
        tell_ready()


if __name__ == "__main__":
    main()
