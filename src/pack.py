"""Many small image files as few large ones: ``python -m src.pack source=<folder> output=<folder>``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="pack")
def main(config: DictConfig) -> None:
    job("pack", config)


if __name__ == "__main__":
    launch(main, "pack")
