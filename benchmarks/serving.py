# SPDX-License-Identifier: BSD-3-Clause
"""Load test of `blip-hf serve`: throughput, p50 and p99 of 1 to 64 clients, with batching and one at a time.

Two servers with the same random weights run in processes of their own, the second with `--max_batch_size 1`. Each client
sends greedy captions of one JPEG, a request after the other. The servers take turns; the one that rests uses no time.
"""

import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BertTokenizer

from blip_hf import BlipConfig, BlipForConditionalGeneration, BlipProcessor

from .harness import OURS, Options, finish, parse_options, print_row, summarize
from .sizes import CLS, PAD, SEP, Size, config_fields


ONE_AT_A_TIME = "one at a time"
BATCH_SIZES = {OURS: 16, ONE_AT_A_TIME: 1}
CLIENTS = {"base": (1, 4, 16, 64), "small": (1, 4, 16, 64), "tiny": (1, 4)}
NUM_TOKENS = {"base": 20, "small": 20, "tiny": 4}
# Each client sends at least two requests, and all of them together at least this many.
MIN_REQUESTS = 16
PHOTO_SIZE = (500, 375)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures both servers with each number of clients, and prints three lines for each number and JSON."""
    options = parse_options(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        save_captioner(options.size, Path(folder))
        servers = {name: stack.enter_context(serving(folder, size, options)) for name, size in BATCH_SIZES.items()}
        ports = {name: port_of(server) for name, server in servers.items()}
        body = request_body(NUM_TOKENS[options.size_name])
        for port in ports.values():
            load(port, body, BATCH_SIZES[OURS], BATCH_SIZES[OURS])  # warms up
        for num_clients in CLIENTS[options.size_name]:
            for row in measure(ports, body, num_clients, options.rounds):
                rows.append(row)
                print_row(row)
    return finish("serving", options, rows)


def save_captioner(size: Size, folder: Path) -> None:
    """Writes a captioner with random weights, and a processor with a vocabulary of its size."""
    special = {"[PAD]": PAD, "[UNK]": CLS - 1, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": SEP + 1}
    taken = set(special.values())
    words = {
        f"w{number}": number for number in range(size.vocab_size - 2) if number not in taken
    }  # [DEC], [ENC] follow
    processor = BlipProcessor.from_bert_tokenizer(BertTokenizer(vocab=special | words), image_size=size.image_size)
    captioner = BlipForConditionalGeneration(BlipConfig(**config_fields(size)))
    captioner.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def serving(folder: str, max_batch_size: int, options: Options) -> Iterator[subprocess.Popen[str]]:
    """A server of a checkpoint, which ends with the block."""
    arguments = ["--port", "0", "--max_batch_size", str(max_batch_size), "--device", str(options.device)]
    limits = ["--max_queue", "256", "--request_timeout", "3600"]
    command = [sys.executable, "-m", "blip_hf", "serve", folder, *arguments, *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def port_of(server: subprocess.Popen[str]) -> int:
    """The port of a server, when it takes requests."""
    found = re.search(r" at http://127\.0\.0\.1:(\d+),", server.stdout.readline())
    if found is None:
        raise RuntimeError("A server did not start; its error is above.")
    return int(found[1])


def request_body(num_tokens: int) -> tuple[bytes, str]:
    """A form with a JPEG that looks like a photo, and settings for a caption of fixed length; with its content type."""
    levels = np.random.default_rng(0).integers(0, 256, size=(12, 16, 3), dtype=np.uint8)
    photo = BytesIO()
    Image.fromarray(levels).resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(photo, "JPEG")
    settings = {"prompt": "", "num_beams": 1, "min_length": num_tokens, "max_length": num_tokens}
    boundary = "benchmark"
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in settings.items()]
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="photo.jpg"\r\n\r\n'
    body = "".join([*parts, file]).encode() + photo.getvalue() + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def measure(ports: dict[str, int], body: tuple[bytes, str], num_clients: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of the seconds per request, p50 and p99, each of a round."""
    num_requests = max(MIN_REQUESTS, 2 * num_clients)
    figures: dict[str, dict[str, list[float]]] = {
        figure: {name: [] for name in ports} for figure in ("seconds per request", "p50", "p99")
    }
    for _ in range(rounds):
        for name, port in ports.items():
            start = time.perf_counter()
            latencies = load(port, body, num_clients, num_requests)
            figures["seconds per request"][name].append((time.perf_counter() - start) / num_requests)
            hundredths = statistics.quantiles(latencies, n=100, method="inclusive")
            figures["p50"][name].append(hundredths[49])
            figures["p99"][name].append(hundredths[98])
    for figure, seconds in figures.items():
        yield row_of(f"served captions, {num_clients} client(s), {figure}", seconds)


def load(port: int, body: tuple[bytes, str], num_clients: int, num_requests: int) -> list[float]:
    """Seconds of each request of clients that send them one after the other.

    Raises:
        RuntimeError: If a request fails.
    """
    latencies: list[float] = []
    failures: list[str] = []
    left = iter(range(num_requests))

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in left:
            start = time.perf_counter()
            connection.request("POST", "/caption", body[0], {"Content-Type": body[1]})
            response = connection.getresponse()
            answer = response.read()
            latencies.append(time.perf_counter() - start)
            if response.status != http.client.OK:
                failures.append(answer.decode())
        connection.close()

    clients = [threading.Thread(target=send) for _ in range(num_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if failures or len(latencies) != num_requests:
        raise RuntimeError(f"{num_requests - len(latencies) + len(failures)} requests failed: {failures[:1]}")
    return latencies


def row_of(case: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """A row of the table: medians of the rounds, and their ratio."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": case,
        "note": f"batches of at most {BATCH_SIZES[OURS]}",
        "seconds": {name: summarize(values) for name, values in seconds.items()},
        "speedup": {ONE_AT_A_TIME: round(medians[ONE_AT_A_TIME] / medians[OURS], 3)},
        "targets": {},
        "peak_bytes": {},
        "memory_targets": {},
        "limit": None,
        "met": None,
    }


if __name__ == "__main__":
    main()
