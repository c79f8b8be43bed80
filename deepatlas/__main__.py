"""``python -m deepatlas <command>``."""

from deepatlas.cli import main

raise SystemExit(main())
