"""``python3 -m smollm.sample``: see `smollm.sample.command`."""

from smollm.sample.command import run
from smollm.stage.run import main

if __name__ == "__main__":
    main(run)
