"""Each process that torchrun starts runs this: commands of ``lcf_lightning``, one after the other."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

from lcf_lightning.cli import main


@atexit.register  # and so called after all that the commands register
def require_no_collectives_left() -> None:
    """No thread of gloo's may see Python taken down: it would abort the process, now and then."""
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in threads):
        sys.stderr.write(f"threads at exit: {threads}\n")
        sys.stderr.flush()
        os._exit(3)


for command in json.loads(Path(sys.argv[1]).read_text()):
    main(command)
