"""Train the model from its initial weights. Run by DVC as stage `pretrain`."""

from smollm.stage.run import main
from stages.training import train

if __name__ == "__main__":
    main(lambda: train("pretrain"))
