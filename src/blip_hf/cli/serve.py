# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf serve`: an HTTP server of captions, matches, answers and features."""

import ipaddress
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..serving.settings import ServerSettings
from ..tasks.base import DType
from .errors import UsageError
from .parser import Command
from .stop_signals import stop_signals


if TYPE_CHECKING:
    from ..serving.models import ServedModels


@dataclass(kw_only=True)
class ServeOptions(ServerSettings):
    """What `blip-hf serve` takes."""

    checkpoint: str = field(
        metadata={
            "help": "Folder or model id of a captioning, retrieval or VQA model",
            "positional": True,
            "metavar": "CHECKPOINT",
        }
    )
    matcher: str | None = field(
        default=None, metadata={"help": "Retrieval model, for /match, /features and the ITM probability of captions"}
    )
    vqa: str | None = field(default=None, metadata={"help": "VQA model, for /ask", "metavar": "CHECKPOINT"})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at", "metavar": "HOST"})
    port: int = field(default=8000, metadata={"help": "Port to listen at; 0 picks a free one"})
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)"}
    )
    dtype: DType | None = field(
        default=None, metadata={"help": "Data type of the weights (default: the checkpoint's)"}
    )
    num_threads: int | None = field(
        default=None, metadata={"help": "Threads of the model on a CPU (default: torch's)"}
    )
    log_requests: bool = field(default=False, metadata={"help": "Print a line for each request"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 2**16:
            raise UsageError(f"--port is {self.port}, expected 0 to {2**16 - 1}.")
        if self.num_threads is not None and self.num_threads < 1:
            raise UsageError(f"--num_threads is {self.num_threads}, expected 1 or more.")


def _run(options: ServeOptions) -> int:
    with stop_signals():
        try:
            from ..serving.app import create_app
            from ..serving.run import bind, run
        except ModuleNotFoundError as error:
            raise ImportError(
                f"The server needs {error.name}, which is not installed: pip install 'blip_hf[serve]'"
            ) from error
        # Before the models are loaded, which takes a while.
        sock = bind(options.host, options.port)
        _warn_of_open_host(options.host)
        app = create_app(_load(options), options)
        announce = partial(_announce, options.checkpoint, *sock.getsockname()[:2])
        run(app, sock, on_start=announce, log_requests=options.log_requests)
    return 0


def _load(options: ServeOptions) -> "ServedModels":
    import torch
    from transformers.utils import logging

    from ..serving.models import ServedModels

    logging.disable_progress_bar()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    return ServedModels.from_pretrained(
        options.checkpoint,
        matcher=options.matcher,
        vqa=options.vqa,
        device=options.device,
        dtype=options.dtype,
    )


def _announce(checkpoint: str, host: str, port: int) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Serving {checkpoint} at {url}, with documentation at {url}/docs", flush=True)


def _warn_of_open_host(host: str) -> None:
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local:
        print(
            f"blip-hf serve: warning: other machines can reach {host}, and the server has no authentication. Put a proxy"
            " that has in front of it.",
            file=sys.stderr,
        )


COMMAND = Command(
    prog="blip-hf serve",
    description="Serves a checkpoint over HTTP: captions at /caption, and with --matcher and --vqa also /match, /features and"
    " /ask. Requests that wait together run as one batch. Stops on SIGTERM and Ctrl-C when all accepted requests are answered."
    " Needs the extra serve.",
    options=ServeOptions,
    run=_run,
)

__all__ = ["COMMAND", "ServeOptions"]
