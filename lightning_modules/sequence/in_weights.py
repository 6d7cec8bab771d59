"""The Lightning module: a decoder that memorises a graph's edges and finds paths in it that it has not seen."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.dynamics.geometry.recall import top_k_recall
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.decoders import Mixer, make_decoder
from lightning_modules.sequence.decoding import decode
from lightning_modules.sequence.in_weights_data import Batch, InWeightsData
from lightning_modules.sequence.path_tasks import NOTHING, InWeightsDataset
from lightning_modules.sequence.schedules import Shape
from lightning_modules.sequence.training import check_numbers, warmed_up
from lightning_modules.sequence.transformer import Transformer, TransformerConfig

_SAVED = "in_weights"
_JUDGED = 1024
"""Training paths that a validation decodes at most, and paths that are decoded at once."""


class InWeightsModule(pl.LightningModule):
    """min over decoders:  cross-entropy of edges + path_weight * cross-entropy of paths.

    A path's loss is the mean over its answer; neither questions nor pauses are learned. Both kinds of examples go through the
    decoder apart, without padding. Vocabulary and context come from the data module.

    Args:
        layers: of the decoder.
        width: of its residual stream.
        heads: of attention.
        mixer: of positions: "attention" or "mamba".
        state: numbers that a channel of "mamba" remembers.
        tie: whether logits are products with the embeddings.
        freeze_embeddings: whether embeddings, and what reads logits, stay random, so that nothing can be laid out in them. Give
            them a larger `embedding_std` then (0.3): else not even edges are learned.
        init_std: of the first weights.
        embedding_std: of the first embeddings; None: `init_std`.
        path_weight: of paths; 0: they are not learned at all. On small graphs a weight of 1 memorises the training paths before
            there is a geometry that tells others.
        lr: peak learning rate.
        weight_decay: AdamW's.
        warmup: steps in which the rate rises.
        final_share: of the peak rate, at the end of the cosine.
        schedule: "cosine" or "constant" after the warm-up.
        fused: whether attention uses torch's kernels.
        seed: of the first weights.

    Raises:
        InputError: a value out of range; at the start of a training, data that are no `InWeightsData`.

    Source: arXiv 2510.26745, sections 2 and 3. The path weight is ours.
    """

    def __init__(
        self,
        layers: Annotated[int, Choice((1, 2, 3, 4))] = 2,
        width: Annotated[int, Choice((32, 64, 128))] = 64,
        heads: int = 4,
        mixer: Annotated[Mixer, Choice(("attention", "mamba"))] = "attention",
        state: int = 16,
        tie: bool = True,
        freeze_embeddings: bool = False,
        init_std: Annotated[float, LogUniform(0.005, 0.1)] = 0.02,
        embedding_std: float | None = None,
        path_weight: Annotated[float, LogUniform(1e-3, 1.0)] = 0.05,
        lr: Annotated[float, LogUniform(1e-4, 1e-2)] = 3e-3,
        weight_decay: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        warmup: Annotated[int, IntLogUniform(10, 1000)] = 100,
        final_share: float = 0.05,
        schedule: Shape = "cosine",
        fused: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers({"lr": lr, "init_std": init_std}, {"path_weight": path_weight, "weight_decay": weight_decay})
        self.save_hyperparameters()
        self.model: Transformer | None = None
        self._prefix = 0
        _config(self.hparams, 1, 1)  # says now what is wrong with the sizes

    @property
    def decoder(self) -> Transformer:
        """The model.

        Raises:
            InputError: no data have said yet how large it is.
        """
        if self.model is None:
            raise InputError("module: has seen no graph yet; train it, call `learn`, or load a checkpoint")
        return self.model

    def learn(self, dataset: InWeightsDataset) -> None:
        """Take a graph's vocabulary and lengths, and make the decoder if there is none yet.

        Raises:
            InputError: the decoder is of another graph.
        """
        self._make(dataset.vocabulary, dataset.context, dataset.prefix)

    def setup(self, stage: str) -> None:
        """Make the decoder for the data module's graph."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, InWeightsData):
            raise InputError("data: are no graph to memorise; give InWeightsData")
        self.learn(data.dataset)

    def answer(self, questions: Tensor, length: int) -> Tensor:
        """The most likely `length` tokens [n, length] after questions [n, P], each decoded from those before it."""
        device = self.device
        parts = [decode(self.decoder, part.to(device), length) for part in torch.split(questions, _JUDGED)]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def hop_scores(self, nodes: Tensor) -> Tensor:
        """Logits [b, n] of every node as a neighbour of nodes [b], in evaluation mode."""
        training = self.training
        self.eval()
        model, n = self.decoder, self._nodes
        nodes = nodes.to(self.device)
        questions = torch.stack([torch.full_like(nodes, n), nodes], 1)
        found = model.logits(model.features(questions)[:, -1])[:, :n]
        self.train(training)
        return found

    def node_vectors(self) -> Tensor:
        """Embeddings [n, W] of the nodes."""
        return self.decoder.embedding.weight[: self._nodes].detach()

    def measure(self, dataset: InWeightsDataset) -> dict[str, float]:
        """What the decoder knows: edge recall, and accuracy on training and held-out paths by free-running decoding.

        Returns:
            edge_recall, and of the first 1,024 training paths and all that are held out, where there are any: first_token, the
            share with the right v_1, and full_path, the share that is right throughout; those of training begin with "train_".
        """
        found = {"edge_recall": top_k_recall(self.hop_scores, *dataset.hop_targets())}
        for name, rows in (("train_", dataset.train[:_JUDGED]), ("", dataset.held_out)):
            if len(rows):
                paths = dataset.paths[rows]
                right = self._right(paths)
                at = dataset.first[rows]
                found[f"{name}first_token"] = float(right.gather(1, at[:, None]).float().mean())
                found[f"{name}full_path"] = float(right.all(1).float().mean())
        return found

    def per_example_losses(self, batch: Batch) -> Tensor:
        """Losses [n] of a batch's edges, then of its paths, each the mean over its target tokens."""
        found = [self._edge_losses(batch["edges"])] if "edges" in batch else []
        if "paths" in batch:
            found.append(self._path_losses(batch["paths"]))
        return torch.cat(found)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the edges plus the weighted mean loss of the paths."""
        loss = self._edge_losses(batch["edges"]).mean()
        self.log("train_edge_loss", loss.detach())
        weight = self.hparams["path_weight"]
        if weight and "paths" in batch:
            paths = self._path_losses(batch["paths"]).mean()
            self.log("train_path_loss", paths.detach())
            loss = loss + weight * paths
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val_loss: of held-out paths, or of edges where there are none."""
        losses = self.per_example_losses(batch)
        self.log("val_loss", losses.mean(), batch_size=len(losses))

    def on_validation_epoch_end(self) -> None:
        """Log what `measure` finds, held-out figures as val_first_token, val_full_path, edges as val_edge_recall."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, value in self.measure(data.dataset).items():
            self.log(name if name.startswith("train") else f"val_{name}", value)

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up and decayed."""
        return warmed_up(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save how large the graph was."""
        if self.model is not None:
            config = self.model.config
            checkpoint[_SAVED] = {
                "vocabulary": config.vocabulary,
                "context": config.context,
                "prefix": self._prefix,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the decoder that the weights are of."""
        if _SAVED in checkpoint:
            self._make(**checkpoint[_SAVED])

    @property
    def _nodes(self) -> int:
        return self.decoder.config.vocabulary - 3

    def _make(self, vocabulary: int, context: int, prefix: int) -> None:
        self._prefix = prefix
        config = _config(self.hparams, vocabulary, context)
        if self.model is None:
            options = self.hparams
            self.model = make_decoder(config, options["mixer"], options["state"], options["seed"]).to(self.device)
        elif self.model.config != config:
            raise InputError(
                f"graph: needs {vocabulary} tokens and {context} positions, the decoder has {self.model.config.vocabulary} "
                f"and {self.model.config.context}; make another module"
            )

    def _edge_losses(self, edges: Tensor) -> Tensor:
        """Cross-entropy [n] of the second node of each pair [..., 2] after the first."""
        source, target = edges.reshape(-1, 2).unbind(1)
        model = self.decoder
        questions = torch.stack([torch.full_like(source, self._nodes), source], 1)
        logits = model.logits(model.features(questions)[:, -1])
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    def _path_losses(self, paths: Tensor) -> Tensor:
        """Mean cross-entropy [n] over the answers of paths [n, P + L]."""
        model = self.decoder
        inputs, targets = paths[:, :-1].clamp(min=0), paths[:, self._prefix :]
        logits = model.logits(model.features(inputs)[:, self._prefix - 1 :])
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=NOTHING, reduction="none"
        )
        return losses.view_as(targets).sum(1) / (targets != NOTHING).sum(1)

    def _right(self, paths: Tensor) -> Tensor:
        """Whether each token [n, L] of the answers is decoded; True behind their ends."""
        questions, answers = paths[:, : self._prefix], paths[:, self._prefix :]
        return (self.answer(questions, answers.shape[1]) == answers) | (answers == NOTHING)


def _config(options: Any, vocabulary: int, context: int) -> TransformerConfig:
    names = ("layers", "width", "heads", "tie", "freeze_embeddings", "init_std", "embedding_std", "fused")
    return TransformerConfig(vocabulary, context, **{name: options[name] for name in names})
