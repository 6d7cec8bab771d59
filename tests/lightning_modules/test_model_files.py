"""Trained classifiers from real files: they answer as the network did, run no code of a file, or fail in one line."""

import io
import json
import logging
import os
import pickle
import sys
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.export.pt2_archive.constants import OPAQUE_OBJ_FILENAME_PREFIX

from lightning_modules.certification.training import NoiseAugmentedClassifier
from lightning_modules.errors import InputError
from lightning_modules.exported_programs import ExportedClassifier
from lightning_modules.lightning_import import pl
from lightning_modules.model_files import check_classifier, read_classifier


def fails(*words: str):
    """Expect one line that holds all the words."""

    def one_line_with_all(error: BaseException) -> bool:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        assert "\n" not in str(error)
        return True

    return pytest.raises(InputError, check=one_line_with_all)


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def saved(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def small_net(width=4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(36 * width, 3),
        )
        net(torch.rand(16, 1, 8, 8))  # running averages of its own
    return net.eval()


X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
BATCH = ({0: torch.export.Dim("batch")},)


def export(net, shapes=BATCH, inputs=(X[:4],)) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(net, inputs, dynamic_shapes=shapes), out)
    return out.getvalue()


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export(small_net())


def write(folder, name, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def same(module: nn.Module, net: nn.Module, inputs=X):
    """The module answers as the net does, for any batch size, and is ready for use."""
    for part in (inputs, inputs[:1], inputs[2:5]):
        torch.testing.assert_close(module(part), net(part), rtol=1e-5, atol=1e-6)
    assert not any(child.training for child in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert check_classifier(module, inputs, 3) == 3


# Exported programs


def test_exported_programs_load_and_travel(tmp_path, exported):
    file = read_classifier(write(tmp_path, "net.pt2", exported))
    assert file.kind == "exported"
    same(file.build(), small_net())
    same(pickle.loads(pickle.dumps(file)).build(), small_net())
    (tmp_path / "elsewhere").mkdir()
    assert read_classifier(write(tmp_path / "elsewhere", "other.pt2", exported)).fingerprint == file.fingerprint
    assert len(file.fingerprint) == 16
    int(file.fingerprint, 16)


def test_exported_programs_keep_to_the_batches_they_were_exported_for(tmp_path):
    content = export(Cases("at least 3"), ({0: torch.export.Dim("batch", min=3, max=6)},))
    module = read_classifier(write(tmp_path, "net.pt2", content)).build()
    assert isinstance(module, ExportedClassifier)
    assert (module.smallest, module.largest, module.shape) == (3, 6, (1, 8, 8))
    for part in (X[:1], X[3:5], X[:6]):  # the first two are filled up to 3
        torch.testing.assert_close(module(part), part.flatten(1)[:, :3])
    with fails("at most 6 examples", "got 7"):
        module(X)
    with fails("shape [1, 8, 8]", "got [1, 9, 8]"):
        module(torch.rand(4, 1, 9, 8))
    with fails("cannot be trained"):
        module.train()
    assert module.eval() is module


def test_a_program_that_was_exported_on_a_gpu_loads_without_one(tmp_path, exported):
    gpu = json.dumps({"type": "cuda", "index": 0})
    content = tampered(exported, text=lambda text: text.replace(json.dumps({"type": "cpu", "index": None}), gpu))
    content = tampered(content, **{WEIGHTS: record(content, WEIGHTS).replace(b'"cpu"', b'"cuda"')})
    assert record(content, WEIGHTS).count(b"cuda") == 9
    assert record(content, "models/model.json").count(b"cuda") > 9
    same(read_classifier(write(tmp_path, "net.pt2", content)).build(), small_net())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_classifiers_are_built_on_a_gpu(tmp_path, exported):
    write(tmp_path, "net.pt2", exported)
    torch.jit.save(torch.jit.script(small_net()), tmp_path / "net.pt")
    here = torch.export.export(small_net().cuda(), (X[:4].cuda(),), dynamic_shapes=BATCH)
    torch.export.save(here, tmp_path / "gpu.pt2")
    for name in ("net.pt2", "net.pt", "gpu.pt2"):
        file = read_classifier(str(tmp_path / name))
        module = file.build("cuda")
        torch.testing.assert_close(module(X.cuda()).cpu(), small_net()(X), rtol=1e-2, atol=1e-3)
        assert check_classifier(module, X.cuda(), 3) == 3
        same(file.build("cpu"), small_net())


class Cases(nn.Module):
    """Nets that are exported with something wrong."""

    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, x, y=None):
        if self.case == "nested dropout":  # becomes a program of its own
            with torch.no_grad():
                x = nn.functional.dropout(x, 0.5, True)
        if self.case == "two inputs":
            x = x + y
        logits = x.flatten(1)[:, :3]
        if self.case == "at least 3":
            logits = logits + 0 * logits[2:3]
        return (logits, logits) if self.case == "two outputs" else logits


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: export(small_net().train(), BATCH, (X[:4],)), ("train mode", "training=True", ".eval()")),
        (lambda: export(small_net(), None), ("fixed batch of 4", "dynamic_shapes")),
        (lambda: export(Cases("nested dropout")), ("train mode", "dropout", ".eval()")),
        (lambda: export(Cases("two inputs"), BATCH * 2, (X[:4], X[:4])), ("takes 2 inputs",)),
        (lambda: export(Cases("two outputs")), ("gives 2 outputs",)),
    ],
)
def test_programs_that_are_no_classifiers_are_refused(tmp_path, make, words):
    with fails("net.pt2", *words):
        read_classifier(write(tmp_path, "net.pt2", make())).build()


def tampered(content: bytes, program=None, text=None, **records: bytes) -> bytes:
    """Write a .pt2 file with other records, another program, or another text of it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            short, data = name.partition("/")[2], old.read(name)
            if short == "models/model.json":
                parsed = json.loads(data)
                if program is not None:
                    program(parsed)
                data = (text or str)(json.dumps(parsed)).encode()
            new.writestr(name, records.pop(short, data))
        for short, data in records.items():
            new.writestr(f"{root}/{short}", data)
    return out.getvalue()


def record(content: bytes, name: str) -> bytes:
    """Read a record of a .pt2 file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(f"{archive.namelist()[0].partition('/')[0]}/{name}")


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def poisons(content: bytes, marker) -> dict[str, bytes]:
    """Files that make a folder, each by another way."""
    call, config = f"__import__('os').mkdir('{marker}')", json.loads(record(content, WEIGHTS))
    config["config"]["0.weight"]["use_pickle"] = True
    opaque = f"{OPAQUE_OBJ_FILENAME_PREFIX}0"
    about = {"path_name": opaque, "is_param": False, "use_pickle": True, "tensor_meta": None}

    def size(program):
        for about in program["graph_module"]["graph"]["tensor_values"].values():
            for side in about["sizes"]:
                if "as_expr" in side:
                    side["as_expr"]["expr_str"] = call

    def target(name, argument):
        def change(program):
            node = program["graph_module"]["graph"]["nodes"][2]
            node["target"], node["inputs"] = name, [{"name": "", "arg": {"as_string": argument}, "kind": 1}]

        return change

    def keyword(program):
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        leaf = {"type": None, "context": None, "children_spec": []}
        spec[1]["children_spec"][1] |= {"context": json.dumps([f"x={call}"]), "children_spec": [leaf]}
        signature["in_spec"] = json.dumps(spec)

    def default_factory(program):
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = signature["out_spec"].replace("null", '"collections.defaultdict"', 1)

    return {
        "example inputs": tampered(content, **{"data/sample_inputs/model.pt": saved((Touch(marker),))}),
        "old weights": tampered(content, **{"data/weights/model.pt": saved(Touch(marker))}),
        "guard": tampered(content, lambda program: program["guards_code"].append(call)),
        "weight": tampered(
            content, **{WEIGHTS: json.dumps(config).encode(), "data/weights/weight_0": saved(Touch(marker))}
        ),
        "object": tampered(
            content,
            **{
                CONSTANTS: json.dumps({"config": {"c": about}}).encode(),
                f"data/constants/{opaque}": pickle.dumps(Touch(marker)),
            },
        ),
        "size": tampered(content, size),
        "name": tampered(content, text=lambda t: t.replace('"name": "input"', f'"name": "input={call}"')),
        "annotation": tampered(content, text=lambda t: t.replace('"name": "input"', '"name": "input: os.sep"')),
        "argument": tampered(content, text=lambda t: t.replace('["input"]', f'["input={call}"]')),
        "parameter": tampered(content, text=lambda t: t.replace('"0.weight"', json.dumps(f'0"+{call}+"'))),
        "function": tampered(content, target("torch.serialization.os.mkdir", str(marker))),
        "writing": tampered(content, target("torch.ops.aten.save.default", str(marker))),
        "attribute": tampered(content, target("_operator.attrgetter", "__class__")),
        "keyword": tampered(content, keyword),
        "factory": tampered(content, default_factory),
        "library": tampered(content, **{"data/aotinductor/model/net.so": b"x"}),
    }


TORCH_RUNS = ("example inputs", "old weights", "guard", "weight", "object", "size")


def test_no_exported_program_runs_code_of_its_file(tmp_path, exported):
    marker = tmp_path / "ran"
    words = {
        "weight": "'0.weight' is a pickle",
        "object": "'c' is a pickle",
        **dict.fromkeys(("size", "name", "annotation", "argument", "parameter"), "where a name or a size should be"),
        "function": "calls 'torch.serialization.os.mkdir'",
        "writing": "calls 'torch.ops.aten.save.default'",
        "attribute": "calls '_operator.attrgetter'",
        **dict.fromkeys(("keyword", "factory"), "something else than one tensor"),
        "library": "compiled code",
    }
    for name, content in poisons(exported, marker).items():
        path = write(tmp_path, "net.pt2", content)
        if name not in words:  # what a program does not need is not read
            same(read_classifier(path).build(), small_net())
        else:
            with fails(path, words[name]):
                read_classifier(path).build()(X)
        assert not marker.exists(), name


def test_torch_itself_runs_code_of_these_files(tmp_path, exported):
    """Or the test above would show nothing."""
    marker = tmp_path / "ran"
    logging.disable(logging.CRITICAL)
    try:
        for name, content in poisons(exported, marker).items():
            if name in TORCH_RUNS:
                with pytest.raises(Exception):  # noqa: B017  # each in its own way, after it ran
                    torch.export.load(io.BytesIO(content)).module()(X[:4])
                assert marker.exists(), name
                marker.rmdir()
    finally:
        logging.disable(logging.NOTSET)


def test_damaged_exported_programs_are_told_in_one_line(tmp_path, exported, caplog, capfd):
    for edit, word in (
        (lambda program: program.pop("graph_module"), "graph_module"),
        (lambda program: program["graph_module"]["graph"]["nodes"].pop(0), "KeyError: 'conv2d'"),
        (
            lambda program: program["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.none.default"),
            "failed to resolve torch.ops.aten.none.default",
        ),
        (lambda program: program["schema_version"].update(major=1), "major=1"),
    ):
        with fails("net.pt2", "cannot be loaded", word):
            read_classifier(write(tmp_path, "net.pt2", tampered(exported, edit))).build()
    short = tampered(exported, **{"data/weights/weight_4": b"1234"})
    with fails("net.pt2", "cannot be loaded", "out of bounds"):
        read_classifier(write(tmp_path, "net.pt2", short)).build()
    assert not caplog.records
    assert capfd.readouterr().err == ""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as old:
        old.writestr("serialized_exported_program.json", "{}")
    with fails("net.pt2", "older torch", "export the model again"):
        read_classifier(write(tmp_path, "net.pt2", out.getvalue())).build()
    with fails("net.pt2"):
        read_classifier(write(tmp_path, "net.pt2", exported[: len(exported) // 2])).build()


# TorchScript


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of making the files
def test_torchscript_files_load_without_warnings(tmp_path):
    net = small_net()
    for name, script in {
        "script.pt": torch.jit.script(net),
        "trace.pth": torch.jit.trace(net, X),
        "frozen.ts": torch.jit.freeze(torch.jit.script(net)),
    }.items():
        torch.jit.save(script, tmp_path / name)
        file = read_classifier(str(tmp_path / name))
        assert file.kind == "torchscript"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            module = pickle.loads(pickle.dumps(file)).build()
        assert not told
        same(module, net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_in_train_mode_or_damaged_is_refused(tmp_path):
    net = small_net()
    net[1].train()
    path = str(tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(net), path)
    with fails(path, "1 was saved in train mode", ".eval()"):
        read_classifier(path).build()
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(small_net()), out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            code = name.endswith(".py")
            new.writestr(name, old.read(name).replace(b"return", b"retrun") if code else old.read(name))
    with fails(path, "cannot be loaded as TorchScript"):
        read_classifier(path).build()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pickle_in_a_torchscript_file_does_not_run(tmp_path):
    marker, out, path = tmp_path / "ran", io.BytesIO(), str(tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(small_net()), out)
    for poisoned in ("data.pkl", "constants.pkl"):
        with zipfile.ZipFile(out) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, pickle.dumps(Touch(marker), 2) if name.endswith(f"/{poisoned}") else old.read(name))
        with fails(path, "cannot be loaded as TorchScript"):
            read_classifier(path).build()
        assert not marker.exists()


# Our own checkpoints


@pytest.mark.parametrize(("network", "mean"), [("small-cnn", [0.3]), ("mlp", None)])
def test_our_own_checkpoints_load(tmp_path, network, mean):
    std = None if mean is None else [0.2]
    module = NoiseAugmentedClassifier(network, (1, 8, 8), 3, sigma=0.25, mean=mean, std=std)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    path = str(tmp_path / "net.ckpt")
    trainer.save_checkpoint(path)
    file = read_classifier(path)
    assert file.kind == "lightning"
    state = torch.random.get_rng_state()
    same(pickle.loads(pickle.dumps(file)).build(), module.eval())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_incomplete_checkpoints_of_ours_are_told_in_one_line(tmp_path):
    about = {"network": "mlp", "input_shape": [4], "classes": 3, "options": {}}
    weights = {"network.fc.weight": torch.ones(3, 64)}
    for change, words in (
        ({"network": "nlp"}, ("unknown 'nlp'",)),
        ({"options": {"colour": 1}}, ("is incomplete", "colour")),
        ({}, ("its weights miss",)),
    ):
        content = saved({"shiftlab_classifier": about | change, "state_dict": weights})
        with fails(*words):
            read_classifier(write(tmp_path, "x.ckpt", content)).build()
    content = saved({"shiftlab_classifier": {"network": "mlp"}, "state_dict": weights})
    with fails("x.ckpt", "is incomplete", "input_shape"):
        read_classifier(write(tmp_path, "x.ckpt", content)).build()


# Classes


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's in the working directory, that Python does not find by itself."""
    (tmp_path / "users_nets.py").write_text(
        "import torch\nfrom torch import nn\nfrom lightning_modules.lightning_import import pl\n"
        "class Shift(nn.Module):\n"
        "    def forward(self, x):\n        return x - 0.5\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width, classes=3):\n        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Dropout(0.5))\n"
        "        self.head = nn.Linear(width, classes)\n"
        "    def forward(self, x):\n        return self.head(self.body(x))\n"
        "def normalised(width):\n    return nn.Sequential(Shift(), Net(width))\n"
        "class Lit(pl.LightningModule):\n"
        "    def __init__(self, width=2, lr=0.1):\n        super().__init__()\n"
        "        self.save_hyperparameters()\n        self.network = Net(width)\n"
        "    def forward(self, x):\n        return self.network(x)\n"
        "class Outer:\n    Inner = Net\n"
        "def number(): return 3\n"
        "def broken(): raise RuntimeError('no\\nluck')\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield lambda: __import__("users_nets")
    sys.modules.pop("users_nets", None)


def test_a_class_and_its_weights_build_the_network(tmp_path, nets):
    torch.save(nets_of(nets, width=5).state_dict(), "weights.pt")
    file = read_classifier("users_nets:Net", "weights.pt", {"width": 5})
    assert (file.kind, file.folder, file.arguments) == ("class", str(tmp_path), {"width": 5})
    net = nets_of(nets, width=5)
    same(file.build(), net)
    safetensors.torch.save_file(net.state_dict(), "weights.safetensors")
    same(read_classifier("users_nets:Outer.Inner", "weights.safetensors", {"width": 5}).build(), net)
    assert read_classifier("torch.nn:Flatten").folder is None
    # Another process finds the module too.
    sys.modules.pop("users_nets")
    sys.path.remove(str(tmp_path))
    os.chdir("/")
    same(pickle.loads(pickle.dumps(file)).build(), net)


def nets_of(nets, width, name="Net"):
    """A network of the user's with running averages of its own, made where the module can be found."""
    sys.path.insert(0, os.getcwd())
    try:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = getattr(nets(), name)(width)
            net(X)
    finally:
        sys.path.remove(os.getcwd())
    return net.eval()


def test_the_fingerprint_is_of_content_class_and_arguments(nets):
    torch.save(nets_of(nets, 5).state_dict(), "a.pt")
    os.rename("a.pt", "b.pt")
    torch.save(nets_of(nets, 6).state_dict(), "c.pt")
    prints = [
        read_classifier(model, weights, arguments).fingerprint
        for model, weights, arguments in (
            ("users_nets:Net", "b.pt", {"width": 5}),
            ("users_nets:Net", "c.pt", {"width": 5}),
            ("users_nets:Net", "b.pt", {"width": 5, "classes": 3}),
            ("users_nets:Outer.Inner", "b.pt", {"width": 5}),
            ("users_nets:Net", None, {"width": 5}),
        )
    ]
    assert len(set(prints)) == len(prints)
    one = read_classifier("users_nets:Net", "b.pt", {"width": 5, "classes": 3}).fingerprint
    assert one == read_classifier("users_nets:Net", "b.pt", {"classes": 3, "width": 5}).fingerprint == prints[2]


def test_a_class_without_weights_is_the_same_network_everywhere(nets):
    file = read_classifier("users_nets:Net", None, {"width": 5})
    first = file.build()
    torch.rand(1)
    state = torch.random.get_rng_state()
    second = file.build()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(first(X), second(X), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "1.module.", "network.", "a.b."])
def test_a_prefix_of_all_names_is_taken_off_where_that_fits(nets, prefix):
    net = nets_of(nets, 5)
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, "arch": "net", "epoch": 3}, "weights.pth")
    same(read_classifier("users_nets:Net", "weights.pth", {"width": 5}).build(), net)


def test_weights_of_a_parallel_network_behind_a_normalisation_load_into_both(nets):
    whole = nets_of(nets, 5, "normalised")
    parallel = nn.Sequential(whole[0], nn.DataParallel(whole[1]))
    assert all(name.startswith("1.module.") for name in parallel.state_dict())
    torch.save({"state_dict": parallel.state_dict(), "arch": "cifar"}, "weights.pth.tar")
    same(read_classifier("users_nets:normalised", "weights.pth.tar", {"width": 5}).build(), whole)
    same(read_classifier("users_nets:Net", "weights.pth.tar", {"width": 5}).build(), whole[1])


def test_batch_norms_counters_may_be_missing(nets):
    net = nets_of(nets, 5)
    old = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save(old, "old.pt")
    same(read_classifier("users_nets:Net", "old.pt", {"width": 5}).build(), net)


def test_a_lightning_checkpoint_brings_its_arguments(nets):
    module = nets_of(nets, 7, "Lit")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("lit.ckpt")
    file = read_classifier("users_nets:Lit", "lit.ckpt")
    assert file.arguments == {"width": 7, "lr": 0.1}
    same(file.build(), module)
    inner = read_classifier("users_nets:Net", "lit.ckpt")  # which has no lr, and names without "network."
    assert inner.arguments == {"width": 7}
    same(inner.build(), module)
    with fails("users_nets:Lit", "size mismatch", "give the arguments"):
        read_classifier("users_nets:Lit", "lit.ckpt", {"width": 6}).build()
    with fails("lit.ckpt", "weights but no network", "--model module:Class --weights lit.ckpt"):
        read_classifier("lit.ckpt")


def test_wrong_classes_and_arguments_are_named(nets):
    torch.save(nets_of(nets, 5).state_dict(), "weights.pt")
    for model, arguments, words in (
        ("users_nets:Net", {}, ("needs width",)),
        ("users_nets:Net", {"widht": 5}, ("no 'widht'", "did you mean 'width'")),
        ("users_nets:Nett", {}, ("has no 'Nett'", "did you mean 'Net'")),
        ("users_nets:constant", {}, ("is a int",)),
        ("no_such_module:Net", {}, ("there is no module no_such_module",)),
        ("users_nets:", {}, ("neither a file nor module:Class",)),
        ("./users_nets.py:Net", {}, ("neither a file nor module:Class",)),
    ):
        with fails(model, *words):
            read_classifier(model, None, arguments)
    with fails("users_nets:number", "makes a int, not an nn.Module"):
        read_classifier("users_nets:number").build()
    with fails("users_nets:broken", "RuntimeError (no)"):
        read_classifier("users_nets:broken").build()
    with fails("torch.nn:Linear", "miss bias, weight and have also body.1.bias, body.1.weight"):
        read_classifier("torch.nn:Linear", "weights.pt", {"in_features": 64, "out_features": 3}).build()
    with open("broken_module.py", "w") as file:
        file.write("import no_such_package\n")
    with fails("broken_module:Net", "importing broken_module fails", "no_such_package"):
        read_classifier("broken_module:Net")


# Files that are something else


def test_files_that_need_unpickling_are_refused_and_do_not_run(tmp_path, nets):
    marker = tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.ones(1)}, "more": Touch(marker)}, "evil.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Touch(marker), 2))
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "more": Touch(marker)}, "legacy.pt", _use_new_zipfile_serialization=False
    )
    torch.save(nets_of(nets, 5), "whole.pt")
    for name, held in (("evil.pt", "posix.mkdir"), ("legacy.pt", "posix.mkdir"), ("whole.pt", "users_nets.Net")):
        for arguments in ((name,), ("users_nets:Net", name, {"width": 5})):
            with fails(name, held, "not unpickled", "torch.save(model.state_dict()"):
                read_classifier(*arguments)
    with fails("old.pt", "torch.save"):
        read_classifier("old.pt")
    assert not marker.exists()
    torch.load("evil.pt", weights_only=False)
    assert marker.exists()


def test_files_without_a_network_say_how_to_give_one(tmp_path):
    net = small_net()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        with fails(name, "no network", "--model module:Class --weights"):
            read_classifier(str(tmp_path / name))
    with fails("numbers.pt", "'epoch', 'best'", "no weights"):
        read_classifier(write(tmp_path, "numbers.pt", saved({"epoch": 1, "best": [1, 2]})))
    with fails("list.pt", "a list"):
        read_classifier(write(tmp_path, "list.pt", saved([1])))
    with fails("text.pt", "no file of torch.save, or damaged"):
        read_classifier(write(tmp_path, "text.pt", b"hello world"))
    with fails("empty.pt", "damaged"):
        read_classifier(write(tmp_path, "empty.pt", b""))
    with fails("cut.pt"):
        read_classifier(write(tmp_path, "cut.pt", saved(net.state_dict())[:2000]))
    with fails("cut.safetensors", "cannot be read as safetensors"):
        read_classifier(write(tmp_path, "cut.safetensors", (tmp_path / "weights.safetensors").read_bytes()[:200]))
    with fails("no_such.pt", "No such file", "module:Class"):
        read_classifier(str(tmp_path / "no_such.pt"))
    with fails(str(tmp_path), "Is a directory"):
        read_classifier(str(tmp_path))
    with fails("weights", "only go with --model module:Class"):
        read_classifier(str(tmp_path / "weights.pt"), "other.pt")
    with fails("arguments", "only go with --model module:Class"):
        read_classifier(str(tmp_path / "weights.pt"), None, {"width": 3})


# Classifiers that answer


class Answers(nn.Module):
    """Classifiers with something wrong."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.eval()

    def forward(self, x):
        logits = x.flatten(1)[:, :3].clone()
        cases = {
            "fine": lambda: logits,
            "dropout": lambda: nn.functional.dropout(logits, 0.5, True),
            "batch norm": lambda: nn.functional.batch_norm(logits, None, None, training=True) if len(x) > 1 else logits,
            "NaN": lambda: logits / (torch.arange(len(x))[:, None] != 2),
            "tuple": lambda: (logits, logits),
            "flat": lambda: logits.flatten(),
            "image": lambda: x,
            "too few rows": lambda: logits[:1],
            "fixed": lambda: x.reshape(7, 64)[:, :3],
            "raises": lambda: x @ x[:, :, :3],
        }
        return cases[self.case]()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("dropout", ("when asked again", ".eval()")),
        ("batch norm", ("depends on the other examples", ".eval()")),
        ("NaN", ("NaN or infinite logits for example 2",)),
        ("tuple", ("type tuple", "logits [7, classes]")),
        ("flat", ("shape [21]", "logits [7, classes]")),
        ("image", ("shape [7, 1, 8, 8]",)),
        ("too few rows", ("shape [1, 3] for 7 examples",)),
        ("fixed", ("batch of 1, though on one of 7", "dynamic_shapes", "shape '[7, 64]' is invalid")),
        ("raises", ("cannot run on inputs of shape [7, 1, 8, 8]",)),
    ],
)
def test_what_cannot_be_certified_is_told_in_one_line(case, words):
    with fails("model: ", *words):
        check_classifier(Answers(case), X, 3)


def test_a_classifier_has_the_classes_of_the_data():
    assert check_classifier(Answers("fine"), X, 3) == 3
    assert check_classifier(Answers("fine"), X[:2], 3) == 3
    with fails("tells 3 classes apart", "the data have 10"):
        check_classifier(Answers("fine"), X, 10)


def test_train_mode_anywhere_is_an_error():
    with fails("Sequential is in train mode", ".eval()"):
        check_classifier(small_net().train(), X, 3)
    net = small_net()
    net[1].train()
    with fails("model: 1 is in train mode"):
        check_classifier(net, X, 3)


def test_differences_of_rounding_are_no_errors():
    class Nearly(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] + self.error * len(x)

    net = Nearly().eval()
    net.error = 1e-5
    assert check_classifier(net, X, 3) == 3
    net.error = 1e-2
    with fails("depends on the other examples"):
        check_classifier(net, X, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("layer", "words"), [(3, ("asked again",)), (1, ("depends on the other examples",))])
def test_train_mode_that_was_traced_into_a_program_is_found(tmp_path, layer, words):
    net = small_net()
    net[layer].train()
    traced = torch.jit.trace(net, X, check_trace=False)
    torch.jit.save(traced.eval(), tmp_path / "net.pt")
    module = read_classifier(str(tmp_path / "net.pt")).build()
    with fails(*words):
        check_classifier(module, X, 3)
