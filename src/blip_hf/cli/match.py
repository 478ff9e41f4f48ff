# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf match`: the ITM probability and the ITC similarity of images and texts."""

from dataclasses import dataclass, field

from .errors import UsageError
from .image_options import TableOptions, is_path
from .parser import Command
from .stop_signals import stop_signals


@dataclass(kw_only=True)
class MatchOptions(TableOptions):
    """What `blip-hf match` takes."""

    images: list[str] = field(
        metadata={
            "help": "Images or folders, then texts in quotes: words that are no paths",
            "positional": True,
            "metavar": "IMAGE",
            "usage": "IMAGE... TEXT...",
        }
    )
    text: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text(s) to compare with each image; all other words are then images",
            "metavar": "TEXT",
            "repeatable": True,
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is None:
            self.images, self.text = split_images_and_texts(self.images)


def split_images_and_texts(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits the words of a command line at the first one that is not a path.

    Raises:
        UsageError: If there are no images or no texts, or a path follows a text.
    """
    num_images = next((number for number, word in enumerate(words) if not is_path(word)), len(words))
    images, texts = words[:num_images], words[num_images:]
    if not texts:
        raise UsageError(
            f"no text after {words[-1]}. Write texts in quotes after the images, or pass them with --text."
        )
    if not images:
        raise UsageError(f"{texts[0]} does not exist. Name images or folders first, then texts.")
    if paths := [word for word in texts if is_path(word)]:
        raise UsageError(
            f"{paths[0]} is a path, but it follows the text {texts[0]!r}. Name all images first, or pass texts with --text."
        )
    return images, texts


def _run(options: MatchOptions) -> int:
    with stop_signals():
        from ..evaluation.matching import match_texts
        from ..modeling.retrieval import BlipForImageTextRetrieval

        images = options.find_images()
        model, processor = options.load(BlipForImageTextRetrieval)
        matches = match_texts(
            model,
            processor,
            images,
            options.text or [],
            batch_size=options.batch_size,
            num_workers=options.workers,
            on_error="skip",
        )
        rows = [
            {
                "image": images.names[match.image_index],
                "text": match.text,
                "itm_probability": match.itm_probability,
                "itc_similarity": match.itc_similarity,
            }
            for match in matches
            if match.error is None
        ]
        failures = [match for match in matches if match.error]
        return options.write_results("blip-hf match", rows, failures, images.names)


COMMAND = Command(
    prog="blip-hf match",
    description='Compares images with texts: `blip-hf match MODEL dog.jpg "a dog" "a cat"`. The words that exist as paths are'
    " images, the others are texts; --text names the texts explicitly. itm_probability is the ITM head's probability of a match,"
    " itc_similarity the cosine of the features.",
    options=MatchOptions,
    run=_run,
)

__all__ = ["COMMAND", "MatchOptions", "split_images_and_texts"]
