"""The contracts: each slot of the laboratory as a protocol, with its laws in words.

Shape suffixes, here and everywhere:
  B sequences in a rollout · G samples per prompt · P prompt tokens (left-padded) · T response tokens (right-padded)
  V vocabulary · K completions ranked per prompt.
KL is in nats per sequence unless a name says `per_token`. x is a prompt, y a response.

A component is a small frozen class whose fields are its parameters:

    class Fixed(Component):
        "A constant KL coefficient (Ouyang et al. 2022, C.4)."
        kind, name = "kl_controller", "fixed"
        beta: float = param(0.02, "KL coefficient", ge=0, source="Ouyang et al. 2022, C.4")

        def start(self):
            return {"beta": self.beta}

        def update(self, state, kl, n_sequences):
            return state

    @hookimpl
    def register_components(register):
        register(Fixed)

What a component has to offer besides its parameters is the protocol of its kind, below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import pluggy
import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    WrapValidator,
    model_serializer,
)
from torch import Tensor

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext

API_VERSION = 1
ENTRY_POINT_GROUP = "rlhf_lab"

hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


class Hooks:
    """The whole hook surface of rlhf_lab."""

    @hookspec
    def register_components(self, register) -> None:
        """Call `register(component_class)` once for each component that this plugin adds."""


# ---------------------------------------------------------------------------------------------------------------
# Parameters


class Component(BaseModel):
    """A named choice for one slot: its fields are its parameters, its methods the protocol of its kind.

    Laws for every component: it is frozen and holds no hidden state; an unknown parameter is an error; each
    parameter changes something; nothing happens at construction (no file, no network, no global random state).
    `version` is raised when the numbers change for the same parameters, so that cached results are not mixed.
    A component that reads files, asks a server or runs code that comes with weights says so: `asks(spec_folder)`, consent.py.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    kind: ClassVar[str]
    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def fits(self, stage: Any, run: Any) -> None:
        """Called when a spec is validated: raises ValueError, one sentence that says what to change, where the component
        makes no sense in the stage, or the run, that it is a part of.
        """

    @model_serializer(mode="wrap")
    def _with_name(self, handler) -> dict[str, Any]:
        return {"name": type(self).name, **handler(self)}


def param(default: Any = ..., doc: str = "", *, unit: str | None = None, source: str | None = None, **constraints) -> Any:
    """A parameter of a component. `constraints` are pydantic's (gt, ge, lt, le, min_length, …).

    `unit` and `source` (paper and section, or repository and line) are shown by `rlhf-lab plugins show`; the laws of
    `rlhf_lab.testing` also try the values of `examples`, where types and bounds suggest none.
    """
    extra = {key: value for key, value in {"unit": unit, "source": source}.items() if value}
    return Field(default, description=doc, json_schema_extra=extra or None, **constraints)


class SlotMarker(NamedTuple):
    kind: str


class StageName(str):
    """The name of another stage of the same spec, whose artifact is read; with `@n`, of its copy whose seed is n higher."""


def stage_and_copy(name: str) -> tuple[str, int]:
    """`reward_model@2`, the stage `reward_model` with its seed plus 2, as ("reward_model", 2); any other name with 0."""
    stage, _, copy = name.rpartition("@")
    return (stage, int(copy)) if stage and copy.isdecimal() else (name, 0)


def _known_stage(value: str, info: ValidationInfo) -> StageName:
    stages = (info.context or {}).get("stages")
    if stages is not None and stage_and_copy(value)[0] not in stages:
        raise ValueError(f"no stage is called {value!r}; this spec has {', '.join(map(repr, stages))}")
    return StageName(value)


def slot(kind: str) -> Any:
    """The type of a field that holds a component of `kind`: in a spec a name, or a mapping with `name` in it."""

    def choose(value: Any, handler: Any, info: ValidationInfo) -> Component:
        if isinstance(value, Component) and value.kind == kind:
            return value
        registry = (info.context or {}).get("registry")
        if registry is None:
            raise ValueError(f"a {kind} must be a component of that kind, or be validated through a registry")
        return registry.choose(kind, value, info.context)

    return Annotated[SerializeAsAny[Any], WrapValidator(choose), SlotMarker(kind)]


StageRef = Annotated[str, AfterValidator(_known_stage)]
Seed = Annotated[int, Field(ge=0)] | Literal["run"]
AdamBetas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


# ---------------------------------------------------------------------------------------------------------------
# What flows between the slots


@dataclass(frozen=True)
class Rollout:
    """B prompts with one response each. Masks come from lengths, never from token equality.

    `mask_BT` covers the response including its EOS; `ended_B` says that the EOS is there. `group_B` numbers the
    prompts, so that the G samples of a prompt share a number. `logprobs_BT` are what the sampler saw, at the
    sampling temperature (None for text that was not sampled). `states_BT`, where it is there, covers one place more than
    `mask_BT`, the one after a response that ended: no token, but a state with a value and a reward (`score_at: post_eos`).
    """

    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    mask_BT: Tensor
    ended_B: Tensor
    group_B: Tensor
    logprobs_BT: Tensor | None = None
    states_BT: Tensor | None = None

    @property
    def places_BT(self) -> Tensor:
        """Where rewards and values are: the response tokens, and with `states_BT` the place after them."""
        return self.mask_BT if self.states_BT is None else self.states_BT

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device) -> Rollout:
        """The same on another device."""
        return replace(
            self,
            **{f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)},
        )

    def rows(self, index: Tensor) -> Rollout:
        """The sequences at `index`, untrimmed."""
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in picked.items():
            if isinstance(value, Tensor):
                picked[name] = value[index]
            elif value is not None:
                picked[name] = tuple(value[i] for i in index.tolist())
        return replace(self, **picked)


class Scores(NamedTuple):
    """What a reward source returns: one number per sequence, and named extra columns (ensemble members, …)."""

    scores_B: Tensor
    columns: Mapping[str, Tensor] = {}


class PolicyOutput(NamedTuple):
    """Differentiable quantities at the response tokens; None where nobody asked for them.

    `kl_BT` is the exact KL(π‖ref) over the vocabulary, nats per token. `values_BT` of a critic with several heads has a
    leading dimension for them; `Minibatch.aggregate_values` and `token_mean` then take the mean over the heads.
    """

    logprobs_BT: Tensor
    entropy_BT: Tensor | None = None
    values_BT: Tensor | None = None
    kl_BT: Tensor | None = None


@dataclass(frozen=True)
class AdvantageInputs:
    """What an estimator may read. `values_BT` and `greedy_scores_B` are there only if its `needs` name them.

    `after_B`, where it is there (`truncation: bootstrap`), is the value of the state after the last place: 0 for a response
    that ended, what the critic expects of one that was cut off. None: nothing comes after the last place.
    `logprobs_BT` and `ref_logprobs_BT` are of the rollout, before the update and under the reference: an estimator that
    reads them names `logprobs`.
    """

    rewards_BT: Tensor
    mask_BT: Tensor
    scores_B: Tensor
    group_B: Tensor
    ended_B: Tensor
    values_BT: Tensor | None = None
    greedy_scores_B: Tensor | None = None
    after_B: Tensor | None = None
    logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None


class Estimate(NamedTuple):
    advantages_BT: Tensor
    returns_BT: Tensor
    state: Mapping[str, float] = {}


@dataclass(frozen=True)
class Minibatch:
    """What an objective term may read besides the new log-probabilities. Masked places hold zeros.

    `weights_BT` carry the aggregation that the spec chose, over the *whole* minibatch; so a term computed on a part
    of it (a micro-batch, a process) adds up to the term on the whole.
    """

    mask_BT: Tensor
    weights_BT: Tensor
    token_weights_BT: Tensor
    old_logprobs_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    scores_B: Tensor
    beta: float
    ref_logprobs_BT: Tensor | None = None
    old_values_BT: Tensor | None = None
    state_weights_BT: Tensor | None = None

    def aggregate(self, x_BT: Tensor) -> Tensor:
        """The weighted sum that the spec's `aggregation` asks for."""
        return (x_BT * self.weights_BT).sum()

    def aggregate_values(self, x_BT: Tensor) -> Tensor:
        """The same over all places that have a value: the response tokens, and with `score_at: post_eos` the one after."""
        return (over_heads(x_BT) * (self.weights_BT if self.state_weights_BT is None else self.state_weights_BT)).sum()

    def token_mean(self, x_BT: Tensor) -> Tensor:
        """Mean over the response tokens of the minibatch, whatever the aggregation."""
        return (over_heads(x_BT) * self.token_weights_BT).sum()


def over_heads(x_BT: Tensor) -> Tensor:
    """The mean over a leading dimension, if there is one."""
    return x_BT if x_BT.dim() == 2 else x_BT.mean(0)


class Loss(NamedTuple):
    """A scalar to minimise, and metrics; both additive over the micro-batches of a minibatch."""

    value: Tensor
    metrics: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Demonstration:
    prompt: str
    completion: str


@dataclass(frozen=True)
class Ranking:
    """K completions of one prompt with ratings, higher is better; a comparison is K = 2.

    `ended` says which of them end with EOS (empty: all); a sampled response that was cut off does not.
    """

    prompt: str
    completions: tuple[str, ...]
    ratings: tuple[float, ...]
    ended: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Preferences:
    """B examples of K responses: pairs, the preferred response first (K = 2), or single responses with a verdict (K = 1).

    Log-probs are Σ_t log π(y_t | x, y_<t) over the response tokens, EOS included: nats per sequence. `lengths_BK` counts
    these tokens. `ref_logprobs_BK` and `baseline` are there only if the loss's `needs` name `reference` and `mismatched`.
    """

    logprobs_BK: Tensor
    lengths_BK: Tensor
    preferred_BK: Tensor
    ref_logprobs_BK: Tensor | None = None
    baseline: Tensor | None = None

    @property
    def log_ratios_BK(self) -> Tensor:
        """log π(y|x) − log ref(y|x), nats per sequence."""
        return self.logprobs_BK - self.ref_logprobs_BK

    def swapped(self) -> Preferences:
        """The same responses with the opposite verdict."""
        names = ("logprobs_BK", "lengths_BK", "ref_logprobs_BK")
        turned = {name: x_BK.flip(1) for name in names if (x_BK := getattr(self, name)) is not None}
        return replace(self, **turned, preferred_BK=~self.preferred_BK.flip(1))


# ---------------------------------------------------------------------------------------------------------------
# The six slots of reinforcement learning


class Policy(Protocol):
    """What `build` of a policy component returns.

    Laws: log-probs are at the sampling temperature, from fp32 log-softmax, and do not depend on padding or batch
    composition; dropout is off; before the first update `reference_logprobs` equals `forward(...).logprobs_BT`, unless
    the policy has `starts_at_reference = False`. The same generator state gives the same noise whatever the weights.
    """

    module: torch.nn.Module

    def rollout(
        self,
        prompts: Sequence[str],
        rng: np.random.Generator,
        *,
        samples: int = 1,
        greedy: bool = False,
        response_length: int,
        temperature: float,
    ) -> Rollout:
        """`samples` responses for each prompt, next to each other (B = prompts × samples)."""

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, template included."""

    def encode(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Rollout:
        """Given text as a rollout, for scoring what was not sampled; EOS is appended, or only where it `ended`."""

    def forward(self, rollout: Rollout, *, temperature: float, entropy: bool = False, kl: bool = False) -> PolicyOutput:
        """Differentiable logprobs_BT (and, if asked for, entropy_BT and kl_BT in nats per token)."""

    def reference_logprobs(self, rollout: Rollout, *, temperature: float) -> Tensor:
        """logprobs_BT of the frozen reference policy."""

    def encode_texts(self, texts: Sequence[str]) -> Rollout:
        """Whole texts as rollouts, the first token as the prompt (pretraining mix)."""

    def save(self, folder: Path) -> None:
        """Weights (safetensors, adapters merged), config and tokenizer."""


class Critic(Protocol):
    """What `build` of a critic component returns. `none` builds None and is for critic-free arms.

    `module` holds what is trained of the critic alone; a critic that reads the policy's own hidden states (`policy.hidden`)
    leaves the trunk to the policy. A critic may offer `heads(rollout)`, differentiable values with a leading dimension, each
    of which the value loss then trains; `values` is what they come to.

    Laws: values_BT[b, t] depends on the prompt and the response tokens before t only; padding changes nothing.
    """

    module: torch.nn.Module

    def values(self, rollout: Rollout) -> Tensor:
        """Differentiable values_BT, the expected return before token t."""


class RewardSource(Protocol):
    """A component with `open(ctx) -> scorer`, where `scorer(rollout) -> Scores`.

    Laws: one finite score per sequence, independent of the other sequences in the batch and of padding; no state
    unless the scorer has `state_dict()` and `load_state_dict(dict)` (JSON), which are then checkpointed. State learns from
    the rollouts that are trained on; after an evaluation the one from before is put back.
    """

    def open(self, ctx: StageContext) -> Any: ...


class KLController(Protocol):
    """Chooses β for the next step from the KL that was observed. `needs` may name `step_kl`: then that is the KL it sees.

    Laws: state is a JSON mapping that holds `beta`, finite and ≥ 0; `update` is pure.
    """

    def start(self) -> dict[str, float]: ...

    def update(self, state: Mapping[str, float], kl: float, n_sequences: int) -> dict[str, float]:
        """`kl`: batch mean of Σ_t (log π − log ref), nats per sequence, of the rollout that was just trained on.

        With `kl_unit: token` in nats per token. With `step_kl` the KL from the policy before the update to the one after.
        """


class AdvantageEstimator(Protocol):
    """Token rewards to advantages. `needs` may name `values`, `greedy_scores`, `groups`.

    Laws: pure; extra right padding changes nothing; masked places of the result are 0; the order of the sequences
    within a group changes nothing; with `values`, `after_B` does what γ·after_B added to the last reward would do.
    """

    def estimate(self, batch: AdvantageInputs, state: Mapping[str, float]) -> Estimate: ...


class Objective(Protocol):
    """One term of the loss; a run has a weighted list.

    `needs` may name `entropy`, `values`, `ref_logprobs`, `full_kl` (PolicyOutput.kl_BT), `pretrain`, and `beta`: the term
    multiplies the controller's β with a KL, which `kl_placement` then has to allow.
    A term that needs `pretrain` is given a batch of pretraining text (its log-probs, mask and weights) in place of the
    rollouts, `ratio` texts for each episode.

    Laws: the gradient does not depend on the split into micro-batches, nor on what stands in masked places.
    """

    weight: float

    def loss(self, new: PolicyOutput, batch: Minibatch) -> Loss: ...


# ---------------------------------------------------------------------------------------------------------------
# The other kinds


class Stage(Protocol):
    """One cached computation. Fields of type `StageRef` name the stages whose artifacts it reads.

    Laws: everything it makes goes into `ctx.folder`; it is a function of its parameters, `ctx.seed`, the data and
    its inputs. `seed` in a stage's parameters is a number, or "run" to follow the seed of the run.
    """

    seed: int | str

    def run(self, ctx: StageContext) -> None: ...


class Dataset(Protocol):
    """What `open(ctx)` of a data component returns; splits are `train` and `validation`.

    Each raises DataError, saying what to add, where the data has no such part. `tokenizer` returns None where the data
    brings no tokenizer of its own. The component itself may offer `has(part) -> bool`, the part being one of these methods,
    so that a spec that asks for what is not there is refused when it is validated.
    """

    def prompts(self, split: str) -> list[str]: ...

    def demonstrations(self, split: str) -> list[Demonstration]: ...

    def rankings(self, split: str) -> list[Ranking]: ...

    def pretraining(self, split: str) -> list[str]: ...

    def tokenizer(self) -> Any: ...


class Model(Protocol):
    """Where weights come from: `open(ctx)` returns (causal language model, tokenizer), in fp32 on the CPU.

    It may offer `prepare()`, which a worker calls before the stages of a run: also those that only read stages need it.
    """

    def open(self, ctx: StageContext) -> tuple[Any, Any]: ...


class Template(Protocol):
    """How a prompt becomes the text that the model continues."""

    def format(self, prompt: str, tokenizer: Any) -> str: ...


class RewardLoss(Protocol):
    """The loss of the reward model.

    Laws: ties contribute nothing; padding of K changes nothing; adding a constant to all scores of a prompt changes
    nothing, unless the docstring says otherwise.
    """

    def examples(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """The batch elements: a ranking as it is, or cut into pairs."""

    def losses(self, scores_BK: Tensor, ratings_BK: Tensor, mask_BK: Tensor) -> Tensor:
        """losses_B; the stage takes the mean over the prompts of a batch."""


class PreferenceLoss(Protocol):
    """The loss of a policy that learns from comparisons directly. `needs` may name `reference` and `mismatched`.

    Laws: examples do not hear each other, but through the `baseline`; a constant added to both log-probs of a pair changes
    nothing, unless the docstring says otherwise; a lower log-prob of the preferred response never costs less near the
    reference; what `needs` does not name is not read.
    """

    def examples(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Pairs of one rated 1 and one rated 0, in this order, or single responses rated 1 or 0."""

    def losses(self, batch: Preferences) -> Tensor:
        """losses_B; the stage takes the mean over a batch."""

    def baseline(self, log_ratios_B: Tensor, preferred_B: Tensor) -> Tensor:
        """Only with `mismatched` in `needs`: one number for a whole batch, which takes no gradient.

        `log_ratios_B` are those of the batch's responses, each to the prompt of its neighbour (the first gets the last's).
        """


class Launcher(Protocol):
    """Where runs are computed: a component with `open(resources, n_runs) -> Fleet`, for `n_runs` runs at most.

    A launcher only starts `python -m rlhf_lab.worker RUN_DIR` and says which of these processes live. All truth is in
    RUN_DIR: run.json says what to do, status.json, log.txt and the stage store how it went. So a launcher carries no result,
    knows no stage and no sweep, and may die at any time: whoever gives the same command goes on.
    """

    def open(self, resources: Any, n_runs: int) -> Fleet:
        """Raises SpecError where there are not the CPUs or GPUs that a run asks for; LabError where it cannot work here."""


class Fleet(Protocol):
    """The processes of one launcher and one sweep.

    Laws. A run is in flight from `start` until `ended` has named it, which it does once, and only when no process of it is
    left. A run that crashes takes no other with it. Each run has `threads` CPUs and `gpus` GPUs (CUDA_VISIBLE_DEVICES) to
    itself. What it prints is in RUN_DIR/log.txt. When the driver dies, its processes save and end by themselves, or the fleet
    that starts the same run next adopts them: never two processes at one run. After `close` nothing that it started is left.
    """

    slots: int
    """How many runs may be in flight."""

    def start(self, run_dirs: Sequence[Path]) -> None:
        """Returns at once."""

    def ended(self, timeout: float) -> Mapping[Path, str]:
        """Runs whose process has ended, each with what is known of how ("killed by SIGSEGV"; "" if nothing went wrong).

        Waits `timeout` seconds at most, and less if one ends.
        """

    def stop(self, run_dirs: Sequence[Path]) -> None:
        """Asks (SIGTERM): the run saves a checkpoint at the end of its step and ends as `interrupted`. Returns at once."""

    def kill(self, run_dirs: Sequence[Path]) -> None:
        """Ends all processes of these runs without asking. Returns at once."""

    def close(self) -> None:
        """Ends all that is left, without asking."""


KINDS: Mapping[str, str] = {
    "policy": "what is trained: samples responses, gives log-probs",
    "critic": "values of states, for estimators that need them",
    "reward": "scores of responses",
    "kl_controller": "the KL coefficient β, step by step",
    "advantage": "token rewards to advantages",
    "objective": "terms of the loss",
    "reward_loss": "the loss of the reward model",
    "preference_loss": "the loss of a policy that learns from comparisons directly",
    "stage": "one cached step of the pipeline",
    "data": "prompts, demonstrations, rankings",
    "model": "where pretrained weights come from",
    "template": "how a prompt is written for the model",
    "launcher": "where runs are computed",
    "preset": "published combinations, every number with its source",
}


@dataclass(frozen=True)
class Preset:
    """A published combination: dotted path in a run's config → (value, source)."""

    name: str
    doc: str
    values: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    kind: ClassVar[str] = "preset"
