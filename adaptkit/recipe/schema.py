"""What a recipe may say: one pydantic model a section, unknown keys refused, every default visible."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

Precision: TypeAlias = Literal["fp32", "bf16", "nf4", "int8"]


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


class ModelSpec(NamedOptions):
    """Which base model, and how it is loaded."""

    name: str = Field(description="A local folder, or the id of a model on the Hugging Face hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    precision: Precision | None = Field(
        None,
        description="Storage of the base weights. Default: what the strategy needs, else fp32 where the "
        "base itself trains or the device has no fast bf16, else bf16.",
    )


class DataSpec(Options):
    """Where the rows are and which columns mean what."""

    train: str = Field(description="File (.jsonl, .json, .csv, .tsv, .parquet), saved `datasets` folder, or hub id.")
    evaluation: str | None = Field(
        None, description="Rows for evaluation during training and for choosing the best step."
    )
    test: str | None = Field(None, description="Rows that only `adaptkit evaluate` and `compare` look at.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Role to column, where the names differ: {text: review, label: stars}."
    )
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens a row may have; longer rows are cut. Default: what the base model can take."
    )


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
    micro_batch_tokens: int = Field(4096, ge=1, description="Padded tokens of one forward pass at the most.")
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
        "is stored in bf16, or quantised on such a device, is computed in bf16 in any case.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
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


class Recipe(Options):
    """A whole run. ``strategy`` and ``task`` hold the Options class of what was chosen by name."""

    model: ModelSpec
    task: SerializeAsAny[TaskOptions]
    data: DataSpec
    strategy: SerializeAsAny[StrategyOptions]
    training: TrainingSpec = TrainingSpec()
    output: str = Field(description="Folder of the run; it must not exist yet, except to resume.")
