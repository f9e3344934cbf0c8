"""What a person sees while a stage runs: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import suppress

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


def say(line: str) -> None:
    """Print a line, above the progress bar if there is one.

    A closed terminal or pipe is ignored: training continues without output.
    """
    with suppress(OSError):
        tqdm.write(line)
        sys.stdout.flush()


def say_error(message: str) -> None:
    """Print the error that ends a program, in a line that starts with ``ERROR:``."""
    print(f"\nERROR: {message}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration as [hours:]minutes:seconds."""
    text: str = tqdm.format_interval(seconds)
    return text


def counted(number: int, noun: str) -> str:
    """`number` with its noun, which gets an s unless the number is 1: `12 documents`, `1 document`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, length: int) -> str:
    """`text` in one line of at most `length` characters; an ellipsis stands for what is cut off."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


class ProgressBar:
    """A bar over `total` units (None: unknown), or a line every 15 seconds where the output is no terminal."""

    def __init__(
        self, title: str, total: int | None, initial: int = 0, unit: str = "step", is_shown: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.is_shown = title, total, unit, is_shown
        self.done = initial
        self._live = is_shown and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=initial, desc=title, unit=unit, unit_scale=unit == "B", disable=not self._live
        )
        self._began, self._first = time.monotonic(), initial
        self._last_line = time.monotonic()

    def update(self, amount: int, **shown: str) -> None:
        """Advance by `amount`, showing name and value of each of `shown`."""
        self.done += amount
        with suppress(OSError):
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(amount)
        now = time.monotonic()
        if (
            self.is_shown
            and not self._live
            and (now - self._last_line >= _SECONDS_BETWEEN_LINES or self.done == self.total)
        ):
            self._last_line = now
            values = "".join(f"  {name} {value}" for name, value in shown.items())
            if self.total is None:
                say(f"{self.title}: {tqdm.format_sizeof(self.done)}{self.unit}{values}")
            else:
                rate = (self.done - self._first) / max(now - self._began, 1e-9)
                left = duration((self.total - self.done) / max(rate, 1e-9))
                say(f"{self.title}: {self.unit} {self.done}/{self.total}{values}  {left} left")

    def close(self) -> None:
        with suppress(OSError):
            self._bar.close()
