from __future__ import annotations

import sys

from pyvfio.cli.main import main

sys.exit(main())
