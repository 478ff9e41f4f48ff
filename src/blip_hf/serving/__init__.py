# SPDX-License-Identifier: BSD-3-Clause
"""An HTTP server of captions, matches, answers and features, with dynamic batching (extra `serve`).

`settings.py` has the limits, `models.py` loads what is served, and each of `caption.py`, `match.py`, `ask.py` and `features.py` is an
endpoint. A request passes `service.py`, `body.py`, `images.py` and `batcher.py`, in this order.
"""

from typing import TYPE_CHECKING, Any

from .settings import ServerSettings


if TYPE_CHECKING:
    from .app import create_app
    from .models import ServedModels

__all__ = ["ServedModels", "ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    # The command line reads the settings for `--help`, without FastAPI and torch.
    if name == "create_app":
        from .app import create_app

        return create_app
    if name == "ServedModels":
        from .models import ServedModels

        return ServedModels
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
