"""``python -m lcf_lightning``."""

from lcf_lightning.cli import main

if __name__ == "__main__":
    main()
