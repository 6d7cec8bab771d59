"""Trained classifiers that somebody hands in as a file: read once, sent anywhere, built on each worker.

A file's weights are tensors and nothing else is unpickled, so reading a file runs no code of it. `module:Class` imports that
module, which is the user's own; TorchScript and exported programs run as the programs of tensor operations that they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.exported_programs import is_exported, load_exported
from lightning_modules.imports import arguments_of, find_class, import_folder, is_import_path, unknown_name
from lightning_modules.state_dicts import find_state_dict, load_tensors, load_weights, reason

ABOUT = "shiftlab_classifier"
"""Key of our checkpoints: what to build the network from."""

_NETWORK = "network."


@dataclass(frozen=True)
class ClassifierFile:
    """A classifier that can be pickled, and built where it is needed.

    Args:
        model: as it was asked for: a path, or "module:Class".
        kind: "lightning" (a checkpoint of ours), "exported" (.pt2), "torchscript" or "class".
        content: bytes of the file, or of the weights of a class; None: a class that needs none.
        arguments: of a class, those of its checkpoint among them.
        folder: what a class's module is found in; None: Python finds it by itself.
    """

    model: str
    kind: Literal["lightning", "exported", "torchscript", "class"]
    content: bytes | None
    arguments: dict[str, Any]
    folder: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell classifiers apart: content, class and arguments, not where the file lies.

        The source code of a class is not in it.
        """
        about = [self.kind, self.model if self.kind == "class" else "", self.arguments]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=repr).encode())
        digest.update(b"\0" + (self.content or b""))
        return digest.hexdigest()[:16]

    def build(self, device: str = "cpu") -> nn.Module:
        """Build the classifier: inputs [B, ...] to logits [B, C], in eval mode, without gradients of its weights.

        Args:
            device: where it will run.

        Raises:
            InputError: naming the model and the mend, if it is damaged, in train mode, or its weights do not fit.
        """
        content = self.content or b""
        if self.kind == "exported":
            return load_exported(content, self.model, device)
        if self.kind == "torchscript":
            module = _load_script(content, self.model, device)
        elif self.kind == "lightning":
            module = _build_ours(content, self.model)
        else:
            module = _build_class(self)
            if self.content is not None:
                load_weights(module, find_state_dict(load_tensors(content, self.model), self.model), self.model)
        for parameter in module.parameters():  # TorchScript has no requires_grad_
            parameter.requires_grad = False
        return module.to(device).eval()


def read_classifier(
    model: str, weights: str | None = None, arguments: Mapping[str, Any] | None = None
) -> ClassifierFile:
    """Read a trained classifier. What does not show before it is built, `ClassifierFile.build` raises.

    Args:
        model: path of a checkpoint of our own classifiers (.ckpt), of a file of torch.export.save (.pt2) or of a
            TorchScript file (.pt, .pth, .ts); or "module:Class" (or "module:function"), what makes an nn.Module, found as
            Python finds it or in the working directory.
        weights: of a class: path of a state dict (.pt, .pth, .safetensors) or of a checkpoint that has one under
            "state_dict", such as Lightning's (.ckpt), whose hyper_parameters are the default arguments. "module." that
            nn.DataParallel leaves in names, or a prefix that all of them have ("1.module." in an nn.Sequential, "network."
            in a LightningModule), is taken off where that makes them fit. What stood before the network without weights of
            its own, such as a normalisation, is for the class to bring.
        arguments: of a class, by name.

    Raises:
        InputError: naming the file and the mend, if there is no such file, class or argument, if it is none of these, or
            if it holds anything that would have to be unpickled.
    """
    given = dict(arguments or {})
    if not Path(model).exists() and ":" in model:
        return _read_class(model, weights, given)
    for name, value in (("weights", weights), ("arguments", given)):
        if value:
            raise InputError(f"{name}: {value} only go with --model module:Class; {model} brings its own")
    content = _read(model, "give the path of a .ckpt, .pt2 or TorchScript file, or module:Class")
    names = zipfile.ZipFile(io.BytesIO(content)).namelist() if zipfile.is_zipfile(io.BytesIO(content)) else []
    if is_exported(names):
        return ClassifierFile(model, "exported", content, {})
    if any(name.endswith("/constants.pkl") for name in names):
        return ClassifierFile(model, "torchscript", content, {})
    loaded = load_tensors(content, model)
    if isinstance(loaded, Mapping) and ABOUT in loaded:
        return ClassifierFile(model, "lightning", content, {})
    find_state_dict(loaded, model)
    raise InputError(f"{model}: holds weights but no network; give --model module:Class --weights {model}")


def check_classifier(module: nn.Module, inputs: Tensor, num_classes: int) -> int:
    """Check on a few examples that a module is a classifier whose answers can be certified.

    Args:
        module: maps inputs [b, ...] to logits [b, C].
        inputs: [b, ...] with b >= 2, on the module's device.
        num_classes: number of classes that the data have.

    Returns:
        C.

    Raises:
        InputError: the module is in train mode, cannot take the inputs or a batch of another size, its output is not
            [b, num_classes] or not finite, or its answer to an example changes by more than a thousandth of the largest logit
            when it is asked again or beside other examples.
    """
    training = [name or type(module).__name__ for name, child in module.named_modules() if child.training]
    if training:
        raise InputError(f"model: {training[0]} is in train mode; call .eval() before it is used or saved")
    count = len(inputs)
    logits = _ask(module, inputs, f"inputs of shape {list(inputs.shape)}")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
        shape = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        raise InputError(
            f"model: gives an output of {shape} for {count} examples; it must be logits [{count}, classes]"
        )
    if logits.shape[1] != num_classes:
        raise InputError(
            f"model: tells {logits.shape[1]} classes apart, the data have {num_classes}; take data and a classifier of the "
            "same classes"
        )
    if not logits.isfinite().all():
        row = int((~logits.isfinite().all(dim=1)).nonzero()[0])
        raise InputError(
            f"model: gives NaN or infinite logits for example {row}; check its weights and the input range"
        )
    again = _ask(module, inputs, "the same inputs again")
    parts = []
    for part in (inputs[:1], inputs[1:]):
        what = f"a batch of {len(part)}, though on one of {count}; export it with dynamic_shapes if its size is fixed"
        parts.append(_ask(module, part, what))
    tolerance = 1e-3 * float(logits.abs().max())
    if not float((again - logits).abs().max()) <= tolerance:  # also where it is NaN
        raise InputError("model: answers differently when asked again; switch off dropout and other noise with .eval()")
    apart = torch.cat(parts)
    if apart.shape != logits.shape or not float((apart - logits).abs().max()) <= tolerance:
        raise InputError(
            "model: its answer depends on the other examples of the batch; put batch norm into eval mode with .eval()"
        )
    return int(logits.shape[1])


def _ask(module: nn.Module, inputs: Tensor, what: str) -> Any:
    try:
        with torch.no_grad():
            return module(inputs)
    except InputError:
        raise
    except Exception as error:  # a user's module can raise anything
        raise InputError(f"model: cannot run on {what} {reason(error)}") from error


def _read(path: str, mend: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {mend}") from error


def _build_ours(content: bytes, where: str) -> nn.Module:
    from lightning_modules.vision_networks import build_classifier

    checkpoint = load_tensors(content, where)
    about = checkpoint[ABOUT]
    try:
        name, shape, classes = about["network"], tuple(about["input_shape"]), int(about["classes"])
        options = dict(about.get("options", {}))
        network = build_classifier(name, shape, classes, torch.Generator(), **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {ABOUT} is incomplete {reason(error)}; train the classifier again") from error
    stored = find_state_dict(checkpoint, where)
    weights = {name.removeprefix(_NETWORK): value for name, value in stored.items() if name.startswith(_NETWORK)}
    load_weights(network, weights, where)
    return network


def _load_script(content: bytes, where: str, device: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole; its files remain in use
        try:
            module: nn.Module = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        except Exception as error:  # a damaged program can fail anywhere in torch's reader
            raise InputError(f"{where}: cannot be loaded as TorchScript {reason(error)}; save it again") from error
    training = [name or "it" for name, child in module.named_modules() if getattr(child, "training", False)]
    if training:
        raise InputError(
            f"{where}: {training[0]} was saved in train mode; call .eval() before torch.jit.script or trace"
        )
    return module


# Classes


def _read_class(model: str, weights: str | None, arguments: dict[str, Any]) -> ClassifierFile:
    if not is_import_path(model):
        raise InputError(f"{model}: is neither a file nor module:Class; write e.g. --model nets:SmallCNN for nets.py")
    folder = import_folder(model)
    accepted = arguments_of(find_class(model, folder), model)
    for argument in arguments:
        if not accepted.takes(argument):
            raise unknown_name(argument, accepted.defaults, model, "arguments")
    content = None
    if weights is not None:
        content = _read(weights, "give the path of a state dict or a checkpoint")
        loaded = load_tensors(content, weights)
        find_state_dict(loaded, weights)
        stored = loaded.get("hyper_parameters")
        if isinstance(stored, Mapping):
            known = {str(key): value for key, value in stored.items() if accepted.takes(str(key))}
            arguments = {**known, **arguments}
    if needed := accepted.needed(arguments):
        raise InputError(f"arguments: {model} needs {', '.join(needed)}; give a value for each")
    return ClassifierFile(model, "class", content, arguments, folder)


def _build_class(file: ClassifierFile) -> nn.Module:
    make = find_class(file.model, file.folder)
    # A class without weights then is the same network on every worker, and nobody's random numbers are used up.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            module = make(**file.arguments)
        except Exception as error:  # the user's class can raise anything
            raise InputError(f"{file.model}: making it fails with {type(error).__name__} {reason(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{file.model}: makes a {type(module).__name__}, not an nn.Module; give another class")
    return module
