"""Train one method: ``python -m src.train method=byol_like``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> float | None:
    return job("fit", config)


if __name__ == "__main__":
    launch(main, "train")
