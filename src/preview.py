"""Look at the views before training on them: ``python -m src.preview views=dino data=shapes``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="preview")
def main(config: DictConfig) -> None:
    job("preview", config)


if __name__ == "__main__":
    launch(main, "preview")
