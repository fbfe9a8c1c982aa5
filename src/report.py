"""A run as one page: ``python -m src.report run=<folder>``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    job("report", config)


if __name__ == "__main__":
    launch(main, "report")
