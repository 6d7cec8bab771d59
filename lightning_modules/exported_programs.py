"""Classifiers in the files that torch.export writes (.pt2), read without running code that a file may hide.

torch.export.load trusts its file: it unpickles example inputs, weights and constants that claim to be pickled, loads
compiled libraries, and evaluates sizes, guards and names as Python source. A program of tensors needs none of that. So
the file is read here as what it is, JSON and raw numbers; whatever could become code is left out or refused; and torch is
given a new file that holds nothing else.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.state_dicts import reason

_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_EXAMPLES = "data/sample_inputs/model.pt"
_PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)

_NAME = re.compile(r"\w*", re.ASCII)
_TEXT = re.compile(r"[\w .+@:/-]*", re.ASCII)
"""Names that end up in Python source: as an identifier, and between quotes."""

_IDENTIFIERS = ("name", "as_name", "forward_arg_names")
_LEFT_OUT = ("metadata", "treespec_namedtuple_fields", "guards_code")
"""Says where an operation came from, and what Python would check of the inputs."""

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!save\b|from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|map_impl|scan)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|lshift|rshift|getitem)"
    r"|torch\.(_sym_sqrt|sym_(float|int|ite|max|min|not|sum))|math\.(ceil|floor|sqrt|trunc)",
    re.ASCII,
)
"""Operations that compute. (`save` and `from_file` write and read files; other functions of Python can do anything.)"""

_EXPRESSION = re.compile(
    r"(?:'[a-z]+\d+'"  # a symbol
    r"|\b(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing"
    r"|Eq|Ne|Equality|Unequality|Not|And|Or|(?:Strict)?(?:LessThan|GreaterThan))\("
    r"|\b(?:positive|negative|nonnegative|nonpositive|nonzero|zero|integer|real|finite|even|odd)=(?:True|False)\b"
    r"|\b[a-z]+\d+\b|\b(?:true|false|True|False)\b|\b\d+\b|[(), +*/<>=-])*",
    re.ASCII,
)
"""Sizes in the notation of sympy, which evaluates them as Python."""

_SPEC_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class ExportedClassifier(nn.Module):
    """An exported program of one tensor, as a module in eval mode.

    Args:
        program: has one input, a tensor whose first dimension is dynamic, and one output.
        shape: shape of one example; None where a dimension is dynamic.
        smallest: fewest examples in a batch; fewer are filled up, for torch.export leaves out 1 by default.
        largest: most examples in a batch; None: any number.
    """

    def __init__(
        self, program: nn.Module, shape: tuple[int | None, ...], smallest: int = 0, largest: int | None = None
    ) -> None:
        super().__init__()
        self.program = program
        self.shape, self.smallest, self.largest = shape, smallest, largest
        for module in self.modules():  # a program has no mode, but torch marks it as training and forbids to say else
            module.training = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [B, C].

        Raises:
            InputError: the batch is larger, or an example of another shape, than the program was exported for.
        """
        count = len(inputs)
        if self.largest is not None and count > self.largest:
            raise InputError(f"model: was exported for at most {self.largest} examples at once, got {count}")
        fits = len(self.shape) == inputs.dim() - 1
        if not fits or any(a not in (None, b) for a, b in zip(self.shape, inputs.shape[1:], strict=True)):
            want = list(self.shape)
            raise InputError(f"model: was exported for examples of shape {want}, got {list(inputs.shape[1:])}")
        if count < self.smallest:
            inputs = torch.cat([inputs, inputs[-1:].expand(self.smallest - count, *inputs.shape[1:])])
        logits: Tensor = self.program(inputs)
        return logits[:count]

    def train(self, mode: bool = True) -> ExportedClassifier:
        """Stay in eval mode, the only one there is.

        Raises:
            InputError: for mode True.
        """
        if mode:
            raise InputError("model: an exported program cannot be trained; train the module that it was made of")
        return self


def load_exported(content: bytes, where: str, device: str = "cpu") -> ExportedClassifier:
    """Load a .pt2 file.

    Args:
        content: of the file.
        where: its name, for errors.
        device: where the classifier will run.

    Raises:
        InputError: the file is damaged, was written by an older torch, could run code when loaded, or holds a program that
            is in train mode, has a fixed batch size, or has other inputs and outputs than one tensor each.
    """
    # What torch.export.load calls first; after an error that prints a traceback and tries the old format, of pickles.
    from torch.export.pt2_archive._package import load_pt2

    try:
        program = load_pt2(io.BytesIO(_cleaned(content, where))).exported_programs["model"]
        if torch.device(device).type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
    except InputError:
        raise
    except Exception as error:  # a damaged program can fail anywhere in torch's reader
        raise _refused(where, f"cannot be loaded {reason(error)}") from error
    _check_eval(program.graph_module, where)
    shape = _input_shape(program, where)
    smallest, largest = 0, None
    if not isinstance(shape[0], int):
        limits = program.range_constraints.get(shape[0].node.expr)
        if limits is not None:
            smallest = int(limits.lower)
            largest = int(limits.upper) if limits.upper.is_Integer else None
    module = program.module(check_guards=False)
    # ExportedClassifier does it, in a hundredth of the time.
    module.validate_inputs = False  # type: ignore[assignment]
    classifier = ExportedClassifier(
        module, tuple(side if isinstance(side, int) else None for side in shape[1:]), smallest, largest
    )
    return classifier.requires_grad_(False).to(device)


def is_exported(names: list[str]) -> bool:
    """Tell from the names in a zip file whether torch.export.save wrote it."""
    inside = {name.partition("/")[2] for name in names}
    return "archive_format" in inside or "serialized_exported_program.json" in names


def _refused(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}; export the model again with this torch, or save it as TorchScript")


def _input_shape(program: torch.export.ExportedProgram, where: str) -> tuple[Any, ...]:
    """Shape of the one input, with a symbol where a size is dynamic."""
    names, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if len(names) != 1 or len(outputs) != 1 or not isinstance(outputs[0], str):
        raise _refused(where, f"takes {len(names)} inputs and gives {len(outputs)} outputs, not one tensor each")
    shape: tuple[Any, ...] = next(n for n in program.graph.nodes if n.name == names[0]).meta["val"].shape
    if not shape or isinstance(shape[0], int):
        raise InputError(
            f"{where}: was exported for a fixed batch of {shape[0] if shape else 0}; export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    return shape


def _check_eval(graph_module: nn.Module, where: str) -> None:
    """Look for dropout and batch norm in train mode, in the program and in the programs it calls."""
    for module in graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            for position, argument in enumerate(node.target._schema.arguments):
                if argument.name in ("train", "training"):
                    value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
                    if value is True:
                        raise InputError(
                            f"{where}: was exported in train mode ({node.target} has {argument.name}=True); call "
                            ".eval() before torch.export.export"
                        )


# What is in the file


def _cleaned(content: bytes, where: str) -> bytes:
    """Write the archive anew with what is known to be harmless."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        present = {name.partition("/")[2]: name for name in archive.namelist()}
        if "serialized_exported_program.json" in archive.namelist():
            raise _refused(where, "was written by an older torch, in a format that holds pickles")
        if any(name.startswith("data/aotinductor/") for name in present):
            raise _refused(where, "holds compiled code, which is not run")
        for name in (_PROGRAM, *_CONFIGS):
            if name not in present:
                raise _refused(where, f"holds no {name}, or more than one program")
        cleaned = io.BytesIO()
        with zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as out:

            def write(name: str, content: bytes) -> None:
                out.writestr(f"model/{name}", content)

            for name in _COPIED:
                if name in present:
                    write(name, archive.read(present[name]))
            write(_EXAMPLES, b"")
            for name in (_PROGRAM, *_CONFIGS):
                data = json.loads(archive.read(present[name]))
                write(name, json.dumps(_checked(data, "", where)).encode())
                if name != _PROGRAM:
                    folder = name.rpartition("/")[0]
                    for payload in sorted(set(_payloads(data, where))):
                        write(f"{folder}/{payload}", archive.read(present[f"{folder}/{payload}"]))
        return cleaned.getvalue()


def _payloads(config: dict[str, Any], where: str) -> Iterator[str]:
    for name, about in config["config"].items():
        if about["use_pickle"] is not False or not _PAYLOAD.fullmatch(about["path_name"]):
            raise _refused(where, f"{name!r} is a pickle, which may run code; only plain tensors are read")
        yield about["path_name"]


def _checked(value: Any, key: str, where: str) -> Any:
    """Copy JSON data, of which every string is checked by the rule of the field it stands in."""
    if key in _LEFT_OUT:
        return type(value)()
    if key in ("device", "as_device"):  # so that a program from a GPU loads anywhere; it is moved as a whole
        return {"type": "cpu", "index": None}
    if isinstance(value, dict):
        if key == "as_custom_obj":
            raise _refused(where, "holds an object of a custom class; only plain tensors are read")
        for name in value:
            if not _TEXT.fullmatch(name):
                raise _odd(where, name)
        return {name: _checked(inner, name, where) for name, inner in value.items()}
    if isinstance(value, list):
        return [_checked(inner, key, where) for inner in value]
    if isinstance(value, str):
        _check_text(value, key, where)
    return value


def _check_text(value: str, key: str, where: str) -> None:
    if key in ("as_string", "as_strings"):  # an operation's argument, quoted by torch
        return
    if key in ("in_spec", "out_spec"):
        _check_spec(json.loads(value)[1], where)
    elif key in ("target", "as_operator"):
        if not _OPERATORS.fullmatch(value):
            raise _refused(where, f"calls {value[:80]!r}, which is not one of torch's operations on tensors")
    elif key == "expr_str":
        if not _EXPRESSION.fullmatch(value):
            raise _odd(where, value)
    elif not (_NAME if key in _IDENTIFIERS else _TEXT).fullmatch(value):
        raise _odd(where, value)


def _check_spec(spec: dict[str, Any], where: str) -> None:
    """Only nested tuples, lists and dicts without keys: an input by keyword would be named in Python source."""
    if spec["type"] not in _SPEC_TYPES or spec["context"] not in (None, "null", "[]"):
        raise _refused(where, "takes or gives something else than one tensor by position")
    for child in spec["children_spec"]:
        _check_spec(child, where)


def _odd(where: str, text: str) -> InputError:
    return _refused(where, f"holds {text[:80]!r} where a name or a size should be, which may run code")
