"""Ray reads its environment when it is imported, so it is set here, before any test module is."""

import os

from serve_app.local.ray_environment import LOOPBACK_ONLY

os.environ.update(LOOPBACK_ONLY)
