"""Another Hydra project: its own primary config, this package's groups through ``pkg://selfdistill.conf``.

``python other_hydra_project.py method=dino_like trainer.max_epochs=1``
"""

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

# Usually a file of your own, conf/project.yaml.
PROJECT = {
    "defaults": ["train", "_self_"],
    "hydra": {"searchpath": ["pkg://selfdistill.conf"]},
    "project": {"reviewer": "nobody"},
}
ConfigStore.instance().store("project", PROJECT)


@hydra.main(version_base="1.3", config_path=None, config_name="project")
def main(config: DictConfig) -> None:
    from selfdistill.assembly import build_data, build_method, build_trainer
    from selfdistill.callbacks import TeacherUpdate

    config.run_dir = hydra.core.hydra_config.HydraConfig.get().runtime.output_dir
    data, module = build_data(config), build_method(config)
    trainer = build_trainer(config, [TeacherUpdate()])
    trainer.fit(module, data)
    print(f"{config.project.reviewer}: {type(module).__name__}, loss {trainer.callback_metrics['train/loss']:.3f}")


if __name__ == "__main__":
    main()
