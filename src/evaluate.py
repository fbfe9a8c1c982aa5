"""Measure a checkpoint: ``python -m src.evaluate checkpoint=<run> protocol=knn``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(config: DictConfig) -> float | None:
    return job("evaluate", config)


if __name__ == "__main__":
    launch(main, "evaluate")
