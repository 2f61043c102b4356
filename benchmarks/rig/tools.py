"""Tools that answer with the arguments they were given, as a process: ``python -m benchmarks.rig.tools``."""

import trio

from dwctl_trio.testing.tool_server import open_tool_server


async def _main() -> None:
    async with open_tool_server() as server:
        print(server.origin, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main)
