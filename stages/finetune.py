"""Continue from the checkpoint of `pretrain` on other text. Run by DVC as stage `finetune`."""

from smollm.stage.run import main
from stages.training import train

if __name__ == "__main__":
    main(lambda: train("finetune", continues="pretrain"))
