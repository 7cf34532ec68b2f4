"""What a recipe may say: one pydantic model a section, unknown keys refused, every default visible."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

Precision: TypeAlias = Literal["fp32", "bf16", "nf4", "int8"]
Auto: TypeAlias = Literal["auto"]


class Options(BaseModel):
    """The parent of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class NamedOptions(Options):
    """A section that is chosen by ``name``; the other keys are the options of what was chosen.

    ``strategy: lora`` is short for ``strategy: {name: lora}``.
    """

    name: str = Field(description="What is chosen.")

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class StrategyOptions(NamedOptions):
    """The options of a strategy: subclass it, and its fields are the keys of the recipe's ``strategy:``."""


class TaskOptions(NamedOptions):
    """The options of a task: subclass it, and its fields are the keys of the recipe's ``task:``."""

    def text_metrics(self) -> list[str]:
        """Returns the names of text metrics, where there is a field ``metrics`` for them."""
        return []


class TokenizerTraining(Options):
    """How a tokenizer is made from the training rows."""

    vocab_size: int = Field(8000, ge=16, description="Entries of the vocabulary at the most, special tokens included.")
    lowercase: bool = Field(False, description="Whether capital letters are read as small ones.")


class ModelSpec(NamedOptions):
    """Which base model, and how it is loaded."""

    name: str = Field(
        description="A local folder, the folder of a finished run, or the id of a model on the Hugging Face hub; with "
        "`init: random` also an architecture (bert, gpt2, t5 …)."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="Weights from the model's files, or new ones, a function of `training.seed`."
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Values that replace those of the model's config: {hidden_size: 256}. With pretrained weights only "
        "what changes no shape.",
    )
    tokenizer: str | TokenizerTraining | None = Field(
        None,
        description="A folder or hub id to take the tokenizer from, or {vocab_size: 8000}: one is trained on the "
        "training rows. Default: the model's own.",
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="Tokens that the vocabulary gains. Their embedding rows train whatever the strategy, and are saved "
        "alone where the base stays frozen.",
    )
    precision: Precision | None = Field(
        None,
        description="Storage of the base weights. Default: what the strategy needs, else fp32 where the "
        "base itself trains or the device has no fast bf16, else bf16.",
    )
    cache_quantized: bool = Field(
        False,
        description="Keep the quantised base in ~/.cache/adaptkit (or $ADAPTKIT_CACHE), so that the next run with it "
        "need not quantise it again. Takes about 0.6 bytes a parameter on the disk in nf4, 1.1 in int8.",
    )

    head: Literal["new", "keep"] = Field(
        "new",
        description="The head that a task needs, where the base is a run: a new one, or keep, the one that the run "
        "has trained for the same task and labels.",
    )

    @field_validator("head")
    @classmethod
    def _new_weights_have_no_head(cls, head: str, info: ValidationInfo) -> str:
        if head == "keep" and info.data.get("init") == "random":
            raise ValueError("a head that was trained would mean nothing to new weights; set model.init to pretrained")
        return head

    @field_validator("tokenizer")
    @classmethod
    def _pretrained_weights_keep_their_tokens(
        cls, tokenizer: str | TokenizerTraining | None, info: ValidationInfo
    ) -> str | TokenizerTraining | None:
        if isinstance(tokenizer, TokenizerTraining) and info.data.get("init") == "pretrained":
            raise ValueError("a new tokenizer would mean nothing to pretrained weights; set model.init to random")
        return tokenizer

    @field_validator("new_tokens")
    @classmethod
    def _new_tokens_are_distinct(cls, tokens: list[str]) -> list[str]:
        if not all(token.strip() for token in tokens):
            raise ValueError("a token is empty")
        if len(set(tokens)) < len(tokens):
            raise ValueError("a token is named twice")
        return tokens


class Source(Options):
    """Where rows are, and what holds for these rows alone."""

    source: str = Field(description="File, folder or hub id.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often its rows are taken in an epoch: 2 is twice, 0.5 takes half of them. Training rows only.",
    )
    format: str | None = Field(None, description="In place of `data.format`.")
    columns: dict[str, str] | None = Field(None, description="In place of `data.columns`.")


Split: TypeAlias = Literal["train", "evaluation", "test"]
_HELD_OUT: tuple[Split, ...] = ("test", "evaluation")
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Sources: TypeAlias = str | Source | Annotated[list[str | Source], Field(min_length=1)]


class DataSpec(Options):
    """Where the rows are and which columns mean what."""

    train: Sources = Field(
        description="File (.jsonl, .json, .csv, .tsv, .parquet, .txt, .conll, .conllu), folder of .txt files, saved "
        "`datasets` folder, or hub id. Several are a list; {source: FILE, weight: 2} says more of one."
    )
    evaluation: Share | Sources | None = Field(
        None,
        description="Rows for evaluation during training and for choosing the best step, or the share of the training "
        "rows that is kept for it.",
    )
    test: Share | Sources | None = Field(
        None, description="Rows, or a share of the training rows, that only `adaptkit evaluate` and `compare` look at."
    )
    group: str | None = Field(
        None, description="Column whose rows of one value stay together when a share is taken: a document, an author."
    )
    format: str = Field("auto", description="How the rows are written; auto: told from the columns.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Role to column, where the names differ: {text: review, label: stars}. A key of an object is "
        "written with a dot: {source: translation.en}.",
    )
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens a row may have; longer rows are cut. Default: what the base model can take."
    )

    @field_validator("evaluation", "test")
    @classmethod
    def _unweighted(cls, value: Share | Sources | None) -> Share | Sources | None:
        if any(source.weight != 1 for source in _sources(value)):
            raise ValueError("only training rows have a weight")
        return value

    @field_validator("test")
    @classmethod
    def _some_left(cls, value: Share | Sources | None, info: ValidationInfo) -> Share | Sources | None:
        if _share(value) + _share(info.data.get("evaluation")) >= 1:
            raise ValueError("with the share for evaluation it leaves no training rows")
        return value

    @field_validator("group")
    @classmethod
    def _divides(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not any(_share(info.data.get(split)) for split in _HELD_OUT):
            raise ValueError("neither data.evaluation nor data.test is a share of the training rows")
        return value

    @property
    def held_out(self) -> Split | None:
        """The split on which a finished run is measured."""
        return next((split for split in _HELD_OUT if getattr(self, split) is not None), None)

    def sources(self, split: Split) -> list[Source]:
        """Returns where the rows of a split are; nothing where there are none, or where they are a share."""
        return _sources(getattr(self, split))

    def share(self, split: Split) -> float:
        """Returns which share of the training rows a split takes; 0 where it has rows of its own or none."""
        return _share(getattr(self, split))

    def named(self, split: Split) -> str:
        """Returns what a message calls the rows of a split."""
        share = self.share(split)
        names = ", ".join(source.source for source in self.sources("train" if share else split))
        return f"{100 * share:.3g} % of {names}" if share else names


def _sources(value: Share | Sources | None) -> list[Source]:
    if value is None or isinstance(value, float):
        return []
    listed = value if isinstance(value, list) else [value]
    return [one if isinstance(one, Source) else Source(source=one) for one in listed]


def _share(value: Share | Sources | None) -> float:
    return value if isinstance(value, float) else 0.0


class TrainingSpec(Options):
    """How long, how fast, in which portions."""

    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Optimizer steps; wins over `epochs`.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate. Default: the strategy's own."
    )
    effective_batch: int = Field(
        32, ge=1, description="Rows per optimizer step, however they are cut into micro-batches."
    )
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        4096,
        description="Padded tokens of one forward pass at the most; auto: as many as fit the device's memory.",
    )
    optimizer: str = Field("adamw", description="By name; `adaptkit optimizers` lists them.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay; not on biases and norms.")
    beta2: float = Field(0.999, gt=0, lt=1, description="Second moment decay of Adam-like optimizers.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after the warm-up.")
    warmup: float = Field(
        0.06, ge=0, lt=1, description="Share of the steps with a rising learning rate (RoBERTa: 6 %)."
    )
    max_grad_norm: float | None = Field(1.0, description="Clip the gradient to this global norm; null: no clipping.")
    compute: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Arithmetic of the forward pass; auto: bf16 where the device has fast bf16, else fp32. A base that "
        "is stored in bf16 is computed in bf16 in any case.",
    )
    packing: bool = Field(
        False,
        description="Put several rows into one sequence, each blind to the others, in place of padding. For tasks and "
        "strategies that allow it.",
    )
    gradient_checkpointing: bool | Literal["selective"] | Auto = Field(
        "auto",
        description="Recompute activations in the backward pass: less memory, more time. selective: all but the output "
        "of attention, which takes longest to recompute. auto: only where the run would not fit the GPU without.",
    )
    loss_chunk_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="Labels whose logits over the vocabulary exist at the same time; the loss and its gradient are the "
        "same. auto: as many as 256 MiB hold.",
    )
    offload: list[Literal["embeddings", "activations"]] | Auto = Field(
        "auto",
        description="What waits in the host's memory while the GPU does not need it: frozen embeddings of input and "
        "output, activations that the backward pass needs. auto: only where the run would not fit the GPU without.",
    )
    optimizer_in_backward: bool = Field(
        False,
        description="Take the optimizer's step for each tensor as soon as its gradient is known and drop the gradient: "
        "gradients take no memory. Needs max_grad_norm: null and one forward pass a step.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="What norms, gates and rotary positions are computed by on a GPU; auto: Liger's fused kernels, "
        "where liger-kernel is installed (`pip install 'adaptkit-train[gpu]'`) and gives the same.",
    )
    cuda_graphs: Literal["auto", "never"] = Field(
        "auto",
        description="Play passes of a shape that comes again and again back as CUDA graphs, so that the GPU does not "
        "wait for Python. auto: where no random numbers are drawn and a small part of the parameters trains.",
    )
    cache_frozen_features: bool = Field(True, description="Run the frozen part of a probe once instead of every epoch.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Of new weights, dropout and the order of the data.")
    evaluate_every: float = Field(1.0, gt=0, description="Epochs between two evaluations.")
    save_every: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Epochs between two checkpoints. Default: as evaluate_every."
    )
    keep_checkpoints: int = Field(
        1, ge=1, description="How many of the last checkpoints stay; the best one stays anyway."
    )
    early_stopping: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after so many evaluations in a row without a better one."
    )

    @property
    def pass_tokens(self) -> int:
        """Padded tokens of one forward pass at the most, once ``micro_batch_tokens: auto`` has become a number."""
        assert isinstance(self.micro_batch_tokens, int), "whoever starts a run replaces auto"
        return self.micro_batch_tokens

    @property
    def recomputation(self) -> Literal["whole", "selective"] | None:
        """What the backward pass computes again; auto that nobody has replaced is nothing."""
        if self.gradient_checkpointing == "selective":
            return "selective"
        return "whole" if self.gradient_checkpointing is True else None


class Recipe(Options):
    """A whole run. ``strategy`` and ``task`` hold the Options class of what was chosen by name."""

    model: ModelSpec
    task: SerializeAsAny[TaskOptions]
    data: DataSpec
    strategy: SerializeAsAny[StrategyOptions]
    training: TrainingSpec = TrainingSpec()
    trackers: list[str] = Field(
        default_factory=list,
        description="Programs that show the figures of metrics.jsonl, by name; `adaptkit trackers` lists them.",
    )
    output: str = Field(description="Folder of the run; it must not exist yet, except to resume.")
