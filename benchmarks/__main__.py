"""What does everything cost? The short set, in less than 5 minutes.

python -m benchmarks [--rounds N] [--effort SHARE] [--json FILE]
"""

from benchmarks import blocking, first_delta, growth, memory, micro, queued, streaming, tool_rounds
from benchmarks.rig.command import run

SHORT_SET = (
    streaming.measure,
    first_delta.measure,
    blocking.measure,
    tool_rounds.measure,
    memory.measure,
    queued.measure,
    growth.measure,
    micro.measure_part,
)

if __name__ == "__main__":
    run(__doc__, *SHORT_SET)
