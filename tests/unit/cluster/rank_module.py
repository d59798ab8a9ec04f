"""What the ranks of test_local_launch.py run."""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    order, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    if order == "say":
        words = [str(rank), os.environ["WORLD_SIZE"], os.environ["MADE_UP"], os.environ["OMP_NUM_THREADS"]]
        (folder / f"rank_{rank}").write_text(" ".join(words))
        print(f"rank {rank} speaks")
    elif order == "fail" and rank == 1:
        print("cannot go on", file=sys.stderr)
        sys.exit(3)
    elif order == "be_killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        partial = folder / f"partial_{rank}"
        partial.write_text(str(os.getpid()))
        partial.rename(folder / f"rank_{rank}")
        time.sleep(60)
