"""Modules of a user's own, in files in a working directory: repeatable, ended early, and wrong in one line."""

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules import user_modules
from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.tensors import EnvironmentBatches, RowStream, split_dataset
from lightning_modules.domain_generalization.catalog import check_method_name, find_method
from lightning_modules.domain_generalization.pack import train_pack
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, Uniform
from lightning_modules.imports import is_import_path, use_folder
from lightning_modules.model_files import read_classifier
from lightning_modules.user_modules import is_user_module, read_user_module
from lightning_modules.watching import Stopped
from tests.lightning_modules.test_pack import members
from tests.lightning_modules.test_pruning import Watcher

NETS = """
import random
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning.pytorch as pl
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, Uniform, When


class Base(pl.LightningModule):
    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Small(Base):
    def __init__(
        self,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        width: int = 8,
        kind: Literal["relu", "tanh"] = "relu",
        seed: int = None,
        sizes=(1, 2),
    ):
        super().__init__()
        self.lr, self.width = lr, width
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[kind]()
        self.net = nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, 3))


class Noisy(Small):
    "Draws from everywhere."

    def training_step(self, batch, _):
        noise = np.random.rand() + random.random() + torch.rand(()).item()
        loss = F.cross_entropy(self(F.dropout(batch[0], 0.3)), batch[1]) * (1 + noise)
        self.log("train_loss", loss)
        return loss


def table(n=50):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(5))
    return TensorDataset(x, x[:, :3].argmax(1))


class Own(Noisy):
    "Brings its loaders."

    def train_dataloader(self):
        return DataLoader(table(), batch_size=10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(table(), batch_size=25)


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: Annotated[int, IntLogUniform(4, 33)] = 10, shuffle: bool = True, width=8,
                 lr: Annotated[float, Uniform(0, 1)] = 0.1):
        super().__init__()
        self.batch_size, self.shuffle, self.width, self.lr = batch_size, shuffle, width, lr

    def train_dataloader(self):
        return DataLoader(table(), batch_size=self.batch_size, shuffle=self.shuffle)

    def val_dataloader(self):
        return DataLoader(table(), batch_size=25)
"""


def stream(name):
    return {"init": 11, "batches": 22, "method": 33 << 40}[name]


def other(name):
    return stream(name) + 1


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files of a user's into the working directory; what is imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))

    write("nets.py", NETS)
    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def fails(*words: str):
    """Expect one line that holds all the words."""

    def one_line_with_all(error: BaseException) -> bool:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        assert "\n" not in str(error)
        return True

    return pytest.raises(InputError, check=one_line_with_all)


def global_states():
    """Of all global generators that modules draw from."""
    return torch.random.get_rng_state().tolist(), str(np.random.get_state(legacy=False)), random.getstate()  # noqa: NPY002


BUDGET = {"steps": 10, "checkpoint_every": 4}


def value(rows, step, metric):
    (found,) = [row[4] for row in rows if row[0] == step and row[3] == metric]
    return found


# Training


def test_a_fit_equals_a_plain_loop(write):
    fitted = read_user_module("nets:Small", "nets:Data").fit({"shuffle": False, "width": 5}, BUDGET, stream)
    assert list(dict.fromkeys(row[:4] for row in fitted.rows)) == [row[:4] for row in fitted.rows]
    assert sorted({row[0] for row in fitted.rows}) == [4, 8, 10]
    assert {row[1:4] for row in fitted.rows} == {
        ("all", "in", "train_loss"),
        ("all", "out", "val_loss"),
        ("all", "out", "val_accuracy"),
    }
    import nets

    with torch.random.fork_rng():
        torch.manual_seed(stream("init"))
        net = nets.Small(width=5).net
    x, y = nets.table().tensors
    for step in range(10):
        rows = slice(10 * (step % 5), 10 * (step % 5) + 10)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        if step + 1 in (4, 8, 10):
            logits = net(x)
            assert value(fitted.rows, step + 1, "train_loss") == pytest.approx(loss.item(), abs=1e-5)
            assert value(fitted.rows, step + 1, "val_loss") == pytest.approx(
                F.cross_entropy(logits, y).item(), abs=1e-5
            )
            right = (logits.argmax(1) == y).float().mean().item()
            assert value(fitted.rows, step + 1, "val_accuracy") == pytest.approx(right, abs=1e-6)
    torch.testing.assert_close(fitted.module.net.state_dict(), net.state_dict())


@pytest.mark.parametrize(("spec", "data"), [("nets:Noisy", "nets:Data"), ("nets:Own", None)])
def test_a_fit_depends_on_the_trial_alone_and_leaves_the_global_generators(write, spec, data):
    user = read_user_module(spec, data)
    states = global_states()
    first = user.fit({}, BUDGET, stream)
    assert global_states() == states
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(3)
    assert user.fit({}, BUDGET, stream).rows == first.rows
    assert user.fit({}, BUDGET, other).rows != first.rows
    for name in ("init", "method"):  # each stream matters by itself; the order of the rows is drawn in training
        assert user.fit({}, BUDGET, lambda n, name=name: (other if n == name else stream)(n)).rows != first.rows


def test_a_data_module_that_draws_has_a_stream_of_its_own(write):
    write(
        "data.py",
        """
        from nets import *
        class Drawn(Data):
            def __init__(self):
                super().__init__()
                self.labels = torch.randint(3, (50,))
            def train_dataloader(self):
                return DataLoader(TensorDataset(table().tensors[0], self.labels), batch_size=10)
        """,
    )
    user = read_user_module("nets:Small", "data:Drawn")
    first = user.fit({}, BUDGET, stream).rows
    assert user.fit({}, BUDGET, stream).rows == first
    assert user.fit({}, BUDGET, lambda n: (other if n == "batches" else stream)(n)).rows != first
    assert user.fit({}, BUDGET, lambda n: (other if n == "method" else stream)(n)).rows == first


def test_loaders_with_processes_of_their_own_draw_from_the_trial_too(write):
    write(
        "data.py",
        """
        from nets import *
        class Jittered(torch.utils.data.Dataset):
            def __len__(self):
                return 50
            def __getitem__(self, row):
                x, y = table()[row]
                return x + torch.randn(4) + np.random.randn(4).astype(np.float32) + random.random(), y
        class Drawn(Data):
            def train_dataloader(self):
                return DataLoader(Jittered(), batch_size=10, shuffle=True, num_workers=2)
        """,
    )
    user = read_user_module("nets:Small", "data:Drawn")
    first = user.fit({}, BUDGET, stream).rows
    assert user.fit({}, BUDGET, stream).rows == first
    assert user.fit({}, BUDGET, lambda n: (other if n == "batches" else stream)(n)).rows != first


def test_modules_that_step_themselves_end_at_their_last_update(write):
    """Lightning counts the steps of every optimizer."""
    write(
        "manual.py",
        """
        from nets import *
        class Manual(Own):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False
            def training_step(self, batch, _):
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
                    optimizer.step()
            def configure_optimizers(self):
                return [super(Manual, self).configure_optimizers() for _ in range(2)]
        """,
    )
    for steps, found in ((10, [4, 8, 10]), (11, [4, 8, 12])):  # two updates a batch, an evaluation every two batches
        rows = read_user_module("manual:Manual").fit({}, {"steps": steps, "checkpoint_every": 2}, stream).rows
        assert [row[0] for row in rows if row[3] == "val_loss"] == found


def test_global_generators_are_put_back_when_a_fit_fails(write):
    torch.manual_seed(1)
    states = global_states()
    with pytest.raises(Stopped):
        read_user_module("nets:Own").fit({}, BUDGET, stream, Watcher(question=2))
    assert global_states() == states
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("question", "report", "evaluations", "questions"),
    [(1, None, 0, 1), (3, None, 0, 3), (6, None, 1, 6), (None, 4, 1, 5), (None, 8, 2, 10), (None, 10, 3, 11)],
)
def test_a_watch_ends_a_fit_within_one_step(write, question, report, evaluations, questions):
    user, watch = read_user_module("nets:Own"), Watcher(question, report)
    complete = user.fit({}, BUDGET, stream).rows
    if evaluations == 3:  # nobody asks after the last step
        rows = user.fit({}, BUDGET, stream, watch).rows
    else:
        with pytest.raises(Stopped) as stopped:
            user.fit({}, BUDGET, stream, watch)
        rows = stopped.value.rows
    assert rows == complete[: 3 * evaluations] == watch.rows
    assert watch.questions == questions
    assert all({row[0] for row in heard} == {step} for step, heard in watch.reports)


def test_the_end_is_evaluated_once_whatever_the_interval(write):
    user = read_user_module("nets:Own")
    for budget, steps in (((10, 5), [5, 10]), ((7, 100), [7]), ((12, 7), [7, 12]), ((1, 1), [1])):
        rows = user.fit({}, dict(zip(("steps", "checkpoint_every"), budget, strict=True)), stream).rows
        assert [row[0] for row in rows if row[3] == "val_loss"] == steps


def test_what_is_not_finite_ends_the_trial(write):
    watch = Watcher()
    with pytest.raises(FloatingPointError, match=r"_loss of environment 'all' \((in|out)\) is (nan|inf) at step 4"):
        read_user_module("nets:Own").fit({"lr": 1e30}, BUDGET, stream, watch)
    assert watch.reports == []


def test_the_trained_module_can_be_saved_and_loaded(write):
    fitted = read_user_module("nets:Small", "nets:Data").fit({"width": 5, "batch_size": 8}, BUDGET, stream)
    assert fitted.arguments == {"width": 5, "lr": 0.1, "kind": "relu", "seed": None}
    torch.save(fitted.checkpoint(), "small.ckpt")
    loaded = type(fitted.module).load_from_checkpoint("small.ckpt")
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    expected = fitted.module.eval()(x)
    torch.testing.assert_close(loaded.eval()(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(read_classifier("nets:Small", "small.ckpt").build()(x), expected, rtol=0, atol=0)


def test_another_process_elsewhere_trains_the_same(write, tmp_path):
    user = read_user_module("nets:Noisy", "nets:Data")
    expected = user.fit({}, BUDGET, stream).rows
    (tmp_path / "user.pkl").write_bytes(pickle.dumps(user))
    code = (
        "import pickle, sys\n"
        "user = pickle.load(open(sys.argv[1], 'rb'))\n"
        "rows = user.fit({}, {'steps': 10, 'checkpoint_every': 4}, {'init': 11, 'batches': 22, 'method': 33 << 40}.get)\n"
        "print(rows.rows)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, "-c", code, str(tmp_path / "user.pkl")]
    out = subprocess.run(command, cwd="/", env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert out.stdout.strip().splitlines()[-1:] == [str(expected)], out.stderr


# Hyperparameters


def test_hyperparameters_of_both_classes(write):
    user = read_user_module("nets:Small", "nets:Data")
    assert user.search_space() == {"batch_size": IntLogUniform(4, 33), "lr": LogUniform(1e-3, 1.0)}
    assert user.defaults() == {
        "batch_size": 10,
        "kind": "relu",
        "lr": 0.1,
        "seed": None,
        "shuffle": True,
        "width": 8,
    }
    assert list(user.search_space()) == sorted(user.search_space())
    kinds = {"batch_size": int, "kind": str, "lr": float, "seed": int, "shuffle": bool, "width": int}
    assert user.kinds() == kinds
    assert user.conditions() == {}
    assert user.complete({"lr": 1}) == {**user.defaults(), "lr": 1.0}
    assert isinstance(user.complete({"lr": 1})["lr"], float)


def test_values_go_to_the_classes_that_take_them(write):
    write(
        "told.py",
        """
        from nets import *
        class Told(Small):
            def validation_step(self, batch, _):
                data = self.trainer.datamodule
                self.log_dict({"lr": self.lr, "width": self.width, "lr of data": data.lr, "width of data": data.width,
                               "batch_size": data.batch_size, "shuffle": float(data.shuffle)})
        class Open(Told):
            def __init__(self, **more):
                self.more = dict(more)
                super().__init__(**more)
        """,
    )
    values = {"lr": 0.5, "width": 3, "batch_size": 7, "shuffle": False}
    rows = read_user_module("told:Told", "nets:Data").fit(values, BUDGET, stream).rows
    logged = {row[3]: row[4] for row in rows if row[0] == 10 and row[2] == "out"}
    expected = {"lr": 0.5, "width": 3, "lr of data": 0.5, "width of data": 3, "batch_size": 7, "shuffle": 0}
    assert logged == expected
    # What nobody knows by name is for **kwargs.
    module = read_user_module("told:Open", "nets:Data").fit({"batch_size": 7, "kind": "tanh"}, BUDGET, stream).module
    assert module.more == {"kind": "tanh"}


def test_a_dataclass_of_hyperparameters(write):
    write(
        "declared.py",
        """
        from dataclasses import dataclass
        from nets import *
        class Declared(Own):
            @dataclass(frozen=True)
            class Hyperparameters:
                momentum: Annotated[float, Uniform(0.0, 0.9), When("optimizer", "sgd", "nag")]
                optimizer: Annotated[str, Choice(("sgd", "adam"))] = "sgd"
                lr: float = 0.3
                def __post_init__(self):
                    if self.momentum >= 1:
                        raise ValueError("momentum is 1 or more")
            def __init__(self, momentum, optimizer="adam", lr=0.1, width=4):
                super().__init__(lr, width)
                self.given = momentum, optimizer, lr, width
        class Lacks(Declared):
            def __init__(self, momentum, lr):
                super().__init__(momentum, "sgd", lr)
        class Circle(Own):
            def __init__(self, a: Annotated[int, When("b", 1)] = 1, b: Annotated[int, When("a", 1)] = 1):
                super().__init__()
        class Listed(Own):
            def __init__(self, widths: Annotated[list, Choice(([1], [2]))] = [1]):
                super().__init__()
        """,
    )
    user = read_user_module("declared:Declared")
    assert user.search_space() == {"momentum": Uniform(0.0, 0.9), "optimizer": Choice(("sgd", "adam"))}
    assert user.conditions() == {"momentum": ("optimizer", ("sgd", "nag"))}
    assert user.defaults() == {"lr": 0.3, "optimizer": "sgd", "width": 4}
    assert user.fit({"momentum": 0}, BUDGET, stream).module.given == (0.0, "sgd", 0.3, 4)
    with fails("declared:Declared needs momentum"):
        user.fit({}, BUDGET, stream)
    user.check({})  # some of the values
    with fails("hyperparameters: declared:Declared: momentum is 1 or more"):
        user.check({"momentum": 1.0})
    with fails("declared:Lacks", "does not take optimizer of its Hyperparameters"):
        read_user_module("declared:Lacks")
    with fails("declared:Circle", "a -> b -> a"):
        read_user_module("declared:Circle")
    with fails("declared:Listed", "widths has a random law", "no plain value"):
        read_user_module("declared:Listed")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_sizes": 3}, ("nets:Small with nets:Data takes no 'batch_sizes'", "did you mean 'batch_size'")),
        ({"zzz": 3}, ("takes no 'zzz'", "it takes batch_size, kind, lr, seed, shuffle, width")),
        ({"sizes": 3}, ("takes no 'sizes'",)),
        ({"lr": "fast"}, ("lr of nets:Small is 'fast'; give a float",)),
        ({"width": 2.5}, ("width of nets:Small is 2.5; give a int",)),
        ({"width": True}, ("width of nets:Small is True",)),
        ({"kind": "gelu"}, ("kind of nets:Small is 'gelu'; give 'relu' or 'tanh'",)),
        ({"shuffle": 1}, ("shuffle of nets:Data is 1; give a bool",)),
    ],
)
def test_wrong_hyperparameters_are_named(write, values, words):
    user = read_user_module("nets:Small", "nets:Data")
    for method in (user.check, user.complete, lambda values: user.fit(values, BUDGET, stream)):
        with fails("hyperparameters: ", *words):
            method(values)


def test_types_without_annotations_and_of_unions(write):
    write(
        "kinds.py",
        """
        from nets import *
        class Kinds(Own):
            def __init__(self, dropout=0, flag=False, momentum: float | None = None, name: Literal["a", 1] = "a", rate=None):
                super().__init__()
        class Bare(pl.LightningModule):
            training_step = validation_step = configure_optimizers = train_dataloader = val_dataloader = lambda self: 0
        """,
    )
    user = read_user_module("kinds:Kinds")
    assert user.kinds() == {"dropout": int, "flag": bool, "momentum": float, "name": str, "rate": float}
    given = {"dropout": 0.5, "flag": True, "momentum": 1, "name": 1, "rate": "any"}
    assert user.complete(given) == given
    assert type(user.complete({"dropout": 1})["dropout"]) is int  # as it may well be meant
    for name, wrong in (("dropout", "much"), ("flag", 1), ("momentum", "1"), ("name", 2)):
        with fails(f"{name} of kinds:Kinds is {wrong!r}"):
            user.check({name: wrong})
    with fails("kinds:Bare takes no 'lr'; it takes none"):
        read_user_module("kinds:Bare").check({"lr": 0.1})


def test_defaults_that_contradict_each_other_are_asked_for(write):
    write(
        "data.py",
        """
        from nets import *
        class Wide(Data):
            def __init__(self, width: int = 9, decay: float = 0):
                super().__init__()
        """,
    )
    user = read_user_module("nets:Small", "data:Wide")
    assert "width" not in user.defaults()
    with fails("width is 8 in nets:Small and 9 in data:Wide by default; give it a value"):
        user.complete({})
    full = user.complete({"width": 3})
    assert full == {"width": 3, "lr": 0.1, "kind": "relu", "seed": None, "decay": 0.0}
    assert type(full["decay"]) is float  # as annotated, so that equal trials are equal


# Classes that cannot be used


WRONG = """
from nets import *

class Nothing: pass
class NoTraining(pl.LightningModule): pass
class NoOptimizer(pl.LightningModule):
    def training_step(self, batch, _): return None
class NoValidation(NoOptimizer):
    def configure_optimizers(self): return None
class NoLoader(pl.LightningDataModule):
    def train_dataloader(self): return None
class Silent(Own):
    def validation_step(self, batch, _): pass
class Empty(Own):
    def train_dataloader(self): return []
class EmptyValidation(Own):
    def val_dataloader(self): return []
class Broken(Own):
    def __init__(self): raise RuntimeError("no\\nluck")
class Unknown(Own):
    def __init__(self, lr: "Nowhere" = 1.0): super().__init__()
number = 3
"""


def test_wrong_classes_are_told_in_one_line(write):
    write("wrong.py", WRONG)
    write("failing.py", "import no_such_package")
    for path, words in (
        ("wrong:Nothing", ("is no LightningModule", "lightning.pytorch.LightningModule")),
        ("wrong:number", ("is a int",)),
        ("wrong:NoTraining", ("has no training_step",)),
        ("wrong:NoOptimizer", ("has no configure_optimizers",)),
        ("wrong:NoValidation", ("has no validation_step", "log a metric")),
        ("nets:Small", ("has no train_dataloader", "give data")),
        ("wrong:Unknown", ("annotations cannot be read", "Nowhere")),
        ("wrong:Silnt", ("has no 'Silnt'", "did you mean 'Silent'")),
        ("failing:Net", ("importing failing fails", "no_such_package")),
        ("nowhere:Net", ("there is no module nowhere", "run from the folder")),
        ("nets.py:Small", ("there is no module nets.py", "write nets:Small")),
        ("Small", ("is no module:Class",)),
    ):
        with fails(path, *words):
            read_user_module(path)
    with fails("wrong:NoLoader", "has no val_dataloader"):
        read_user_module("nets:Small", "wrong:NoLoader")
    with fails("nets:Small", "is no LightningDataModule"):
        read_user_module("nets:Small", "nets:Small")
    with fails("wrong:NoValidation", "has no forward", "logits [n, C]"):
        read_user_module("wrong:NoValidation", environments=True)
    for name, words in (
        ("Silent", ("validation logs nothing", "self.log")),
        ("Empty", ("training data are empty",)),
        ("EmptyValidation", ("validation data are empty",)),
        ("Broken", ("making it fails with RuntimeError (no)",)),
    ):
        with fails(f"wrong:{name}", *words):
            read_user_module(f"wrong:{name}").fit({}, BUDGET, stream)
    with fails("held_out", "nets:Own have no environments"):
        read_user_module("nets:Own").fit({}, BUDGET, stream, held_out=["a"])


def test_what_an_import_path_names(write):
    write("wrong.py", WRONG)
    write("mine.py", "from lightning_modules.domain_generalization.erm import ERM")
    assert is_user_module("nets:Small")
    assert not is_user_module("mine:ERM")
    with fails("wrong:Nothing: is neither a LightningModule nor a method", "method.Method"):
        is_user_module("wrong:Nothing")
    for name, expected in (
        ("nets:Small", True),
        ("a.b.nets:Outer.Inner", True),
        ("GroupDRO", False),
        ("GaussianSEM:dimension=3", False),
        ("./nets.py:Small", False),
        ("nets:", False),
        ("s3://bucket", False),
    ):
        assert is_import_path(name) == expected, name


def test_the_fingerprint_follows_the_code(write):
    write("package/__init__.py", "")
    write("package/net.py", "from nets import Own\nfrom .sizes import WIDTH\nclass Net(Own):\n    width = WIDTH\n")
    write("package/sizes.py", "WIDTH = 3\n")
    write("package/other.py", "x = 1\n")
    write("package/more.py", "x = 1\n")
    write("helper.py", "x = 1\n")
    write("data.py", "import nets, helper\nfrom package import more\nclass Data(nets.Data): pass\n")
    user = read_user_module("package.net:Net", "data:Data")
    prints = [user.fingerprint]
    assert len(user.fingerprint) == 16
    int(user.fingerprint, 16)
    assert pickle.loads(pickle.dumps(user)).fingerprint == user.fingerprint
    write("package/other.py", "x = 2\n")
    assert user.fingerprint == prints[0]
    files = ("net.py", "sizes.py", "more.py", "__init__.py", "../data.py", "../nets.py", "../helper.py")
    for name in (f"package/{file}" for file in files):
        with open(name, "a") as file:
            file.write("# changed\n")
        prints.append(user.fingerprint)
    assert len(set(prints)) == len(files) + 1
    assert read_user_module("package.net:Net").fingerprint not in prints


# Environments


ON_ENVIRONMENTS = """
from nets import *

class Flat(Base):
    def __init__(self, lr: float = 0.1, batch_size: int = 32, inputs: int = 392):
        super().__init__()
        self.lr = lr
        self.frozen = nn.Identity().eval()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2), self.frozen)

    def training_step(self, batch, _):
        inputs, labels = batch
        assert inputs.dtype == torch.float32 and self.net.training and not self.frozen.training
        self.shape = inputs.shape[:2]
        logits = self(inputs.flatten(0, 1)).unflatten(0, labels.shape)
        return torch.stack([F.cross_entropy(f, y) for f, y in zip(logits, labels)]).mean()

    def val_dataloader(self):
        raise RuntimeError("its environments are not these")

class Sized(Flat):
    def __init__(self, lr: float = 0.1):
        super().__init__(lr)

class Three(Flat):
    def forward(self, x):
        return F.pad(super().forward(x), (0, 1))
"""


@pytest.fixture(scope="module")
def split():
    return split_dataset(load_dataset("ColoredMNIST"), seed=0)


def test_a_module_trains_on_environments_of_ours(write, split, monkeypatch):
    write("flat.py", ON_ENVIRONMENTS)
    monkeypatch.setattr(user_modules, "_EVALUATION_ROWS", 999)
    user = read_user_module("flat:Flat", environments=True)
    fitted = user.fit({"batch_size": 16}, BUDGET, stream, None, split, ["-90%"])
    rows = fitted.rows
    assert fitted.module.shape == (2, 16)
    import flat

    with torch.random.fork_rng():
        torch.manual_seed(stream("init"))
        net = flat.Flat().net
    batches = iter(EnvironmentBatches(split, lambda: RowStream(split, [0, 1], 16, stream("batches"))))
    for _ in range(10):
        inputs, labels = next(batches)
        loss = torch.stack([F.cross_entropy(net(x), y) for x, y in zip(inputs, labels, strict=True)]).mean()
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    assert [row[0] for row in rows[::12]] == [4, 8, 10]
    assert len(rows) == 36
    for index, name in enumerate(split.dataset.environment_names):
        for part, chosen in (("in", split.rows_in[index]), ("out", split.rows_out[index])):
            logits, labels = net(split.inputs[chosen]), split.labels[chosen]
            found = {row[3]: row[4] for row in rows if row[:3] == (10, name, part)}
            assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
            right = (logits.argmax(1) == labels).double().mean().item()
            assert found["accuracy"] == pytest.approx(right, abs=0.003)
    assert user.fit({"batch_size": 16}, BUDGET, stream, None, split, ["-90%"]).rows == rows
    watch = Watcher(report=4)
    with pytest.raises(Stopped) as stopped:
        user.fit({"batch_size": 16}, BUDGET, stream, watch, split, ["-90%"])
    assert stopped.value.rows == rows[:12] == watch.rows
    assert watch.questions == 5


def test_the_batch_size_on_environments(write, split):
    write("flat.py", ON_ENVIRONMENTS)
    user = read_user_module("flat:Sized", environments=True)
    assert user.defaults() == {"batch_size": 64, "lr": 0.1}
    assert user.kinds() == {"batch_size": int, "lr": float}
    budget = {"steps": 1, "checkpoint_every": 1}
    assert user.fit({"batch_size": 5}, budget, stream, None, split).module.shape == (3, 5)
    assert read_user_module("flat:Flat", environments=True).defaults()["batch_size"] == 32
    for wrong, words in ((0, "batch_size is 0; give 1 or more"), (2.5, "batch_size of flat:Sized is 2.5; give a int")):
        with fails(words):
            user.check({"batch_size": wrong})
    with fails("flat:Three", "output of shape [5000, 3]; it must be logits [5000, 2]"):
        read_user_module("flat:Three", environments=True).fit({}, budget, stream, None, split)
    with fails("no environment 'x'"):
        user.fit({}, budget, stream, None, split, ["x"])


def test_pixels_come_as_floats(write, split):
    write("flat.py", ON_ENVIRONMENTS)
    user, budget = read_user_module("flat:Flat", environments=True), {"steps": 3, "checkpoint_every": 3}
    pixels = dataclasses.replace(split, inputs=(split.inputs * 255).round().to(torch.uint8))
    floats = dataclasses.replace(split, inputs=pixels.inputs.float() / 255)
    assert user.fit({}, budget, stream, None, pixels).rows == user.fit({}, budget, stream, None, floats).rows


# Methods


MINE = """
from dataclasses import dataclass
from typing import Annotated
from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method
from lightning_modules.hyperparameters import Uniform

@dataclass(frozen=True)
class PowerHyperparameters(Hyperparameters):
    power: Annotated[float, Uniform(1.0, 3.0)] = 1.0

class Power(Method):
    Hyperparameters = PowerHyperparameters

    @staticmethod
    def objective(outputs, labels, hyperparameters, state, step):
        return (environment_risks(outputs.logits, labels) ** hyperparameters.power).mean(), {}

class Empty(Method): pass

@dataclass(frozen=True)
class Alone:
    lr: float = 1.0

class Short(Power):
    Hyperparameters = Alone
"""


def test_a_method_of_ones_own_trains_in_a_pack(write, split):
    write("mine.py", MINE)
    check_method_name("mine:Power")
    pack = members(split.dataset, find_method("mine:Power"))
    plain = [dataclasses.replace(m, hyperparameters={**m.hyperparameters, "power": 1.0}) for m in pack]
    erm = [
        dataclasses.replace(m, hyperparameters={k: v for k, v in m.hyperparameters.items() if k != "power"})
        for m in pack
    ]
    rows = train_pack("mine:Power", plain, BUDGET)
    expected = train_pack("ERM", erm, BUDGET)
    for ours, theirs in zip(rows, expected, strict=True):
        assert [row[:4] for row in ours] == [row[:4] for row in theirs]
        assert [row[4] for row in ours] == pytest.approx([row[4] for row in theirs], abs=5e-3)
    assert train_pack("mine:Power", pack, BUDGET) != rows


def test_a_worker_elsewhere_finds_a_method_in_its_folder(write, tmp_path, monkeypatch):
    write("mine.py", MINE)
    monkeypatch.chdir("/")
    with fails("there is no module mine"):
        find_method("mine:Power")
    use_folder(str(tmp_path))
    assert find_method("mine:Power").__name__ == "Power"


def test_methods_that_are_none_are_told_in_one_line(write):
    write("mine.py", MINE)
    for path, words in (
        ("nets:Small", ("methods: nets:Small is no method", "method.Method")),
        ("mine:Uniform", ("is no method",)),
        ("mine:Empty", ("neither objective nor update",)),
        ("mine:Short", ("the Hyperparameters of mine:Short have no weight_decay, batch_size, network",)),
        ("mine:Powr", ("did you mean 'Power'",)),
        ("gone:Power", ("there is no module gone",)),
    ):
        for find in (check_method_name, find_method):
            with fails(*words):
                find(path)
