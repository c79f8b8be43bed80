"""``python -m deepatlas <command>``."""

from deepatlas.cli.main import main

raise SystemExit(main())
