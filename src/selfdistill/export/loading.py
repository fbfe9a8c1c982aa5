"""The code of a card: what a reader pastes to get the network, with timm or torch alone."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.export.plain import Image, Recipe

_SMALL_CNN = """class SmallCNN(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.stages = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(widths, widths[1:], (1, 2, 1, 2))
        ))

    def forward(self, images):
        return self.stages(images).mean((2, 3))


model = SmallCNN({widths})"""


def building(recipe: Recipe) -> str:
    """Code that builds the network of ``recipe`` as ``model``."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in recipe.arguments.items())
    if recipe.library == "small_cnn":
        widths = [recipe.arguments["channels"], *recipe.arguments["widths"]]
        return "from torch import nn\n\n\n" + _SMALL_CNN.replace("{widths}", str(widths))
    if recipe.library == "own":
        return f"model = ...  # {recipe.architecture}, as it was built for training"
    if recipe.architecture == "VisionTransformer":
        return f"from timm.models.vision_transformer import VisionTransformer\n\nmodel = VisionTransformer({arguments})"
    lines = ["import timm", "", f"model = timm.create_model({recipe.architecture!r}, {arguments})"]
    if recipe.small_stem:
        channels = recipe.arguments["in_chans"]
        lines.insert(1, "import torch")
        lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, model.conv1.out_channels, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    return "\n".join(lines)


def loading(
    format: str,
    recipe: Recipe,
    file: str,
    image: Image,
    torchvision: Sequence[str],
    *,
    head: bool = False,
    patches: bool = False,
) -> str:
    """Code that loads ``file`` and uses it.

    Args:
        format: of the file.
        recipe: of the network.
        file: its name.
        image: what it is tried with.
        torchvision: the lines that build torchvision's network.
        head: the file holds a head too; the code takes the backbone.
        patches: the features are the mean of the patch tokens.
    """
    size = ", ".join(str(n) for n in image)
    if format == "torch_export":
        return f"import torch\n\nmodel = torch.export.load({file!r}).module()\nfeatures = model(torch.zeros(1, {size}))"
    if format == "onnx":
        return (
            f"import numpy as np\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession({file!r})\n"
            f'(features,) = session.run(None, {{"images": np.zeros((1, {size}), np.float32)}})'
        )
    call = f"model(torch.zeros(1, {size}))"
    if patches:
        call = f"model.forward_features(torch.zeros(1, {size}))[:, model.num_prefix_tokens :].mean(1)"
    use = f"model.eval()\nfeatures = {call}"
    if format == "torchvision":
        load = f"model.load_state_dict(torch.load({file!r}, weights_only=True))"
        return "\n".join(["import torch", "import torchvision", "", *torchvision, load, use])
    if format == "huggingface":
        return (
            f"import timm\nimport torch\n\n"
            f'model = timm.create_model("local-dir:{file}", pretrained=True)  # or hf-hub:<user>/<name>\n{use}'
        )
    read = f"load_file({file!r})"
    if head:
        read = f'{{n[9:]: v for n, v in {read}.items() if n.startswith("backbone.")}}'
    imports = "import torch\nfrom safetensors.torch import load_file\n"
    return f"{imports}{building(recipe)}\nmodel.load_state_dict({read})\n{use}"
