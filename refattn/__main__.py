"""``python -m refattn`` is ``refattn``."""

from refattn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
