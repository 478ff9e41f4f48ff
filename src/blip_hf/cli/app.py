# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf app`: a page in the browser to caption, ask, match, explain, search and filter."""

import ipaddress
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..tasks.base import DType
from .errors import UsageError
from .parser import Command
from .stop_signals import stop_signals


@dataclass(kw_only=True)
class AppOptions:
    """What `blip-hf app` takes."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or model id of a captioning, retrieval or VQA model, or the output folder of a pre-training, for"
            " its captioner and retriever",
            "positional": True,
            "metavar": "MODEL",
        },
    )
    matcher: str | None = field(
        default=None, metadata={"help": "Retrieval model, to match and explain", "metavar": "MODEL"}
    )
    vqa: str | None = field(default=None, metadata={"help": "VQA model, to ask", "metavar": "MODEL"})
    index: str | None = field(
        default=None, metadata={"help": "Folder that `blip-hf index` wrote, to search", "metavar": "DIR"}
    )
    capfilt: Path | None = field(
        default=None,
        metadata={"help": "Output folder of `blip-hf capfilt run`, to browse and filter", "metavar": "DIR"},
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at", "metavar": "HOST"})
    port: int = field(default=7860, metadata={"help": "Port to listen at"})
    share: bool = field(
        default=False, metadata={"help": "Also open the page to the internet, through a server of Gradio"}
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)"}
    )
    dtype: DType | None = field(
        default=None, metadata={"help": "Data type of the weights (default: the checkpoint's)"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.port < 2**16:
            raise UsageError(f"--port is {self.port}, expected 1 to {2**16 - 1}.")


def _run(options: AppOptions) -> int:
    with stop_signals():
        try:
            from ..app.models import PageContent, find_checkpoints, load_models
            from ..app.run import serve
            from ..search.index import BlipIndex
        except ModuleNotFoundError as error:
            raise ImportError(
                f"The page needs {error.name}, which is not installed: pip install 'blip_hf[app]'"
            ) from error
        from transformers.utils import logging

        logging.disable_progress_bar()
        checkpoints = find_checkpoints(options.model, matcher=options.matcher, vqa=options.vqa)
        warn_of_visitors(options)
        models = load_models(checkpoints, device=options.device, dtype=options.dtype)
        index = None if options.index is None else BlipIndex.open(options.index, device=options.device)
        content = PageContent(index=index, capfilt_run=options.capfilt, **models)
        served = serve(content, host=options.host, port=options.port, share=options.share)
        with served as address, suppress(KeyboardInterrupt):  # also SIGTERM
            print(f"The page is at {address} until you press Ctrl-C", flush=True)
            threading.Event().wait()
    return 0


def warn_of_visitors(options: AppOptions) -> None:
    """Warns on stderr if other machines can reach the page."""
    if options.share or not _is_local(options.host):
        where = "The internet" if options.share else f"The network of {options.host}"
        print(
            f"blip-hf app: warning: {where} can reach this page, which has no password: visitors run the models and, with"
            " --capfilt, write folders beside the run.",
            file=sys.stderr,
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


COMMAND = Command(
    prog="blip-hf app",
    description="Opens a page on this machine to caption images, ask about them, compare them with texts, see which patches a"
    " word looks at, and browse a CapFilt run. Makes no request to other machines. Needs the extra app.",
    options=AppOptions,
    run=_run,
)

__all__ = ["COMMAND", "AppOptions", "warn_of_visitors"]
