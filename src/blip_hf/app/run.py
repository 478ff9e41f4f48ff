# SPDX-License-Identifier: BSD-3-Clause
"""Serves the page, without any request to another machine unless the page is shared."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


# Gradio reads it when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from .models import PageContent
from .page import build_page, page_style


@contextmanager
def serve(content: PageContent, *, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> Iterator[str]:
    """Serves the page for the time of the block, and yields its address. Uploads are deleted at the end.

    Raises:
        OSError: If the port is in use.
        ValueError: If the CapFilt run cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="blip_hf_app_") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(content)
        _, local_address, shared_address = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size="64mb",
            **page_style(),
        )
        try:
            yield shared_address or local_address
        finally:
            page.close(verbose=False)


__all__ = ["serve"]
