"""``python -m lcf_lightning.evaluation``: lm-evaluation-harness' own commands, with ``--model lcf``."""

from lcf_lightning.evaluation.harness import main

if __name__ == "__main__":
    main()
