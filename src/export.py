"""Hand a trained backbone on: ``python -m src.export checkpoint=<run> format=timm``."""

import hydra
from omegaconf import DictConfig

from selfdistill.cli import job, launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(config: DictConfig) -> None:
    job("export", config)


if __name__ == "__main__":
    launch(main, "export")
