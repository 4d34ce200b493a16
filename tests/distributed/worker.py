"""Each process that torchrun starts runs this: commands of ``lcf_lightning``, one after the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lcf_lightning.cli import main

for command in json.loads(Path(sys.argv[1]).read_text()):
    main(command)
