import time
from tests.http.test_connection_guard import *
async def test_explore3(postgres_dsn) -> None:
  for name in ATTACKS:
    async with open_service(postgres_dsn) as service:
        async with open_raw(service) as client:
            with trio.move_on_after(.5) as scope:
              try:
                await client.send(ATTACKS[name])
                await client.stream.send_eof()
                await client.read_to_end()
              except Exception as e: pass
        t=time.time()
    t = time.time()-t
    if t>.1 or scope.cancelled_caught: print(name, "closing took", t, scope.cancelled_caught)
