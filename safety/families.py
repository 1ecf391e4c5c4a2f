"""The families of bounds, one section of bounds.toml each: what is limited, its default, and what is done when it is
met.

Values only. Which part of a change or of a model falls under which limit is the business of `safety.admission` and of
whoever asks; how a key is read and compared, of `safety.limits`; the whole of them is `safety.bounds.Bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from safety.limits import Looser, limit
from safety.operators import MOST_PARENTS, Operator

REFUSES_CANDIDATE = "refuses the candidate before it runs"
REFUSES_MODEL = "refuses the model that came out"
REFUSES_RELEASE = "refuses the release"
HOLDS_RELEASE = "holds nominations back"
PAUSES = "pauses the service"
KILLS = "kills the job"
REFUSES_INPUT = "refuses the model at start"
AWAITS_OPERATOR = "lets what passed wait for `kaizend approve`"
ROLLS_BACK = "rolls back by itself"
STOPS_RELEASES = "refuses the release, and pauses until the operator resumes"


@dataclass(frozen=True, slots=True)
class ModelBounds:
    """What any model may be."""

    max_parameters: int = limit(
        20_000_000_000, "parameters of a model, and of a path before it is built", REFUSES_MODEL, low=1, high=1e13)
    max_layers: int = limit(
        200, "layers of a model, and of a path before it is built", REFUSES_MODEL, low=1, high=100_000)
    max_file_gib: float = limit(
        80.0, "size of a model's weights on disk, and of a path's before it is built", REFUSES_MODEL, low=0.0, high=1e5,
        unit="GiB")
    dtypes: tuple[str, ...] = limit(
        ("float32", "bfloat16", "float16"), "number formats of the weights", REFUSES_MODEL, Looser.MORE,
    )
    max_vocabulary: int = limit(1_000_000, "tokens a model knows", REFUSES_MODEL, low=1, high=10**9)
    max_hidden: int = limit(65_536, "hidden size of a model", REFUSES_MODEL, low=1, high=10**9)
    max_intermediate: int = limit(
        1_048_576, "width inside a model's feed-forward blocks", REFUSES_MODEL, low=1, high=10**9)
    architectures: tuple[str, ...] = limit(
        (
            "llama", "mistral", "mixtral", "ministral", "ministral3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
            "qwen3_next", "qwen3_5_text", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "phi",
            "phi3", "phimoe", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "stablelm", "starcoder2",
            "olmo", "olmo2", "olmo3", "olmoe", "olmo_hybrid", "smollm3", "granite", "granitemoe", "granitemoeshared",
            "granitemoehybrid", "cohere", "cohere2", "glm", "glm4", "glm4_moe", "deepseek_v2", "deepseek_v3", "gpt_oss",
            "seed_oss", "apertus", "arcee", "exaone4", "ernie4_5", "ernie4_5_moe", "helium", "nanochat", "nemotron",
            # recurrent, and hybrids of recurrence or convolution and attention
            "mamba", "mamba2", "falcon_mamba", "falcon_h1", "recurrent_gemma", "bamba", "jamba", "zamba2", "nemotron_h",
            "lfm2", "lfm2_moe",
            # with a language part that sees
            "llava", "llava_next", "llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe",
            "qwen3_5", "gemma3", "gemma3n", "gemma4", "llama4", "mistral3", "idefics2", "idefics3", "smolvlm",
            "internvl", "aya_vision", "cohere2_vision", "glm4v", "lfm2_vl", "aria",
        ),
        "kinds of model, as model_type in config.json names them", REFUSES_MODEL, Looser.MORE,
    )
    same_schema: bool = limit(
        True, "tensors keep their names and shapes, unless the change itself says that it grows the model; a layer of "
        "a path has those of a layer that was there",
        REFUSES_MODEL, Looser.DOWN,
    )


@dataclass(frozen=True, slots=True)
class SearchBounds:
    """What the architecture loop may propose."""

    operators: tuple[str, ...] = limit(
        (*map(str, Operator), "crossover", "path", "keep"),
        "operators that may make a candidate", REFUSES_CANDIDATE, Looser.MORE,
    )
    min_weight: float = limit(0.0, "smallest merge weight", REFUSES_CANDIDATE, Looser.DOWN, low=-10.0, high=10.0)
    max_weight: float = limit(2.5, "largest merge weight", REFUSES_CANDIDATE, low=0.0, high=10.0)
    min_scale: float = limit(
        0.5, "smallest scale of the residual stream at a seam of a path", REFUSES_CANDIDATE, Looser.DOWN,
        low=0.0, high=1.0, above_low=True)
    max_scale: float = limit(
        2.0, "largest scale of the residual stream at a seam of a path", REFUSES_CANDIDATE, low=1.0, high=1e3)
    max_parents: int = limit(MOST_PARENTS, "parents of one merge or path", REFUSES_CANDIDATE, low=1, high=1000)
    largest_step: float = limit(
        2.5, "largest change of one merge weight against the incumbent, where both merge the same parents",
        REFUSES_CANDIDATE, low=0.0, high=20.0)


@dataclass(frozen=True, slots=True)
class PipelineBounds:
    """What a training recipe may ask for."""

    stages: tuple[str, ...] = limit(("sft", "grpo"), "training stages", REFUSES_CANDIDATE, Looser.MORE)
    min_learning_rate: float = limit(
        1e-8, "smallest learning rate", REFUSES_CANDIDATE, Looser.DOWN, low=0.0, high=1.0,
    )
    max_learning_rate: float = limit(0.01, "largest learning rate", REFUSES_CANDIDATE, low=0.0, high=1.0)
    max_steps: int = limit(20_000, "optimiser steps of one recipe", REFUSES_CANDIDATE, low=1, high=10**9)
    max_batch: int = limit(4096, "rows or completions of one optimiser step", REFUSES_CANDIDATE, low=1, high=10**7)
    adapters: tuple[str, ...] = limit(
        ("none", "lora", "dora", "rslora"), "kinds of adapter", REFUSES_CANDIDATE, Looser.MORE,
    )
    max_rank: int = limit(512, "rank of an adapter", REFUSES_CANDIDATE, low=1, high=100_000)


@dataclass(frozen=True, slots=True)
class RewardBounds:
    """What a shaping may do to the reward. Above a strength of .5 a wrong answer could outrank a right one."""

    max_strength: float = limit(0.5, "strength B of a shaping", REFUSES_CANDIDATE, low=0.0, high=0.5)
    features: tuple[str, ...] = limit(
        ("places", "overlap", "prefix", "closeness", "grounded", "brevity", "varied"),
        "features that a shaping may pay for", REFUSES_CANDIDATE, Looser.MORE,
    )


@dataclass(frozen=True, slots=True)
class DriftBounds:
    """How far a released model may be from an earlier one. Norms are relative to the earlier model's."""

    relative_frobenius: float = limit(
        1.0, "Frobenius norm of the whole change", REFUSES_RELEASE, low=0.0, high=1e6)
    tensor_frobenius: float = limit(
        4.0, "Frobenius norm of the change of any one tensor", REFUSES_RELEASE, low=0.0, high=1e6)
    spectral: float = limit(4.0, "spectral norm of the change of any one matrix", REFUSES_RELEASE, low=0.0, high=1e6)
    embedding_norm: float = limit(
        4.0, "largest embedding row, as a multiple of the earlier one", REFUSES_RELEASE, low=1.0, high=1e6)
    kl_mean: float = limit(4.0, "mean KL divergence per token", REFUSES_RELEASE, low=0.0, high=1e3, unit="nats")
    kl_p99: float = limit(
        25.0, "KL divergence per token, 99th percentile", REFUSES_RELEASE, low=0.0, high=1e3, unit="nats")
    entropy_shift: float = limit(
        2.0, "shift of the mean entropy per token, either way", REFUSES_RELEASE, low=0.0, high=1e3, unit="nats")
    length_shift: float = limit(
        1.0, "shift of the mean answer length, either way, as a share", REFUSES_RELEASE, low=0.0, high=1e3)


@dataclass(frozen=True, slots=True)
class DriftFamily:
    """Drift is bounded from the first model of the life and from the last stable one."""

    reference: DriftBounds = field(default_factory=DriftBounds)
    stable: DriftBounds = field(default_factory=DriftBounds)


@dataclass(frozen=True, slots=True)
class GuardBounds:
    """What a guard task may lose: a release has to show that it lost less."""

    margin: float = limit(
        0.03, "loss of accuracy that every guard task must be shown to stay under", REFUSES_RELEASE,
        low=0.0, high=0.9, above_low=True,
    )
    margins: dict[str, float] = limit(   # noqa: RUF009  a dataclass field like every limit
        {}, 'the same for single tasks, as { "name" = 0.02 }', REFUSES_RELEASE, low=0.0, high=0.9, above_low=True,
    )

    def of(self, task: str) -> float:
        return self.margins.get(task, self.margin)


@dataclass(frozen=True, slots=True)
class BehaviourBounds:
    """How a released model must behave, besides its guards and its drift."""

    calibration: float = limit(
        0.5, "expected calibration error of the tokens of right answers, teacher-forced", REFUSES_RELEASE,
        low=0.0, high=1.0)
    canaries: int = limit(
        0, "junk answers that the verifiers of the targets may pay for", REFUSES_RELEASE, choices=(0,))


@dataclass(frozen=True, slots=True)
class RateBounds:
    """How often working may ask to become stable.

    Nominations are counted, not releases: a limit that counted releases would let the vault's answers decide which
    models are tested.
    """

    releases_per_day: int = limit(24, "nominations, and so releases, in any 24 hours", HOLDS_RELEASE, low=0, high=10**6)
    cycles_between_nominations: int = limit(
        1, "outermost cycles that must close between two nominations", HOLDS_RELEASE, Looser.DOWN, low=0, high=10**6)
    dwell_seconds: float = limit(
        60.0, "time from the answer to a nomination until the next", HOLDS_RELEASE, Looser.DOWN, low=0.0, high=1e9,
        unit="s")
    rollbacks_per_week: int = limit(
        3, "rollbacks that the daemon makes by itself in any 7 days; one more pauses it", PAUSES, low=0, high=10**6)
    drift_per_week: float = limit(
        7.0, "relative Frobenius norms of the changes released in any 7 days, together", REFUSES_RELEASE,
        low=0.0, high=1e6)


@dataclass(frozen=True, slots=True)
class ResourceBounds:
    """What the service may use of its host."""

    job_seconds: float = limit(14_400.0, "time of one job", KILLS, low=1.0, high=1e7, unit="s")
    min_disk_free_gib: float = limit(
        5.0, "free disk space that must remain", PAUSES, Looser.DOWN, low=0.0, high=1e6, unit="GiB")
    gpu_hours_per_day: float = limit(24.0, "GPU time of all jobs in a day", PAUSES, low=0.0, high=1e5, unit="h")
    seconds_per_day: float = limit(
        86_400.0 * 8, "time of all jobs in a day, jobs side by side each counted", PAUSES, low=0.0, high=1e8, unit="s")
    energy_kwh_per_day: float = limit(
        240.0, "energy of the host while jobs run in a day, as far as it can be read", PAUSES, low=0.0, high=1e6,
        unit="kWh")
    worker_memory_gib: float = limit(
        64.0, "memory of one worker, and never more than nine tenths of the host's", KILLS, low=0.1, high=1e5,
        unit="GiB")
    scratch_gib: float = limit(200.0, "disk space of one job's scratch folder", KILLS, low=0.001, high=1e6, unit="GiB")
    worker_processes: int = limit(
        0, "processes that a worker may start; 0: the kernel refuses every one", KILLS, low=0, high=10_000)


@dataclass(frozen=True, slots=True)
class SandboxBounds:
    """What the sandbox of the workers must be. What it limits is in [resources]."""

    required: bool = limit(
        False, "refuse to start where a part of the sandbox is missing (`kaizend check` says which hold)",
        "refuses to start", Looser.DOWN)
    user: str = limit(
        "", "user that workers run as where the daemon is root; empty: the daemon's own", "separates the workers",
        Looser.LONE)


@dataclass(frozen=True, slots=True)
class ServingBounds:
    """What serving a released model may cost: against the stable one, on one machine in one run, and outright."""

    latency_ratio: float = limit(
        2.0, "time per token of one request, as a multiple of the stable model's", REFUSES_RELEASE,
        low=0.0, high=1e6, above_low=True)
    speed_ratio: float = limit(
        0.5, "tokens per second of many requests, as a multiple of the stable model's", REFUSES_RELEASE, Looser.DOWN,
        low=0.0, high=1e6)
    memory_ratio: float = limit(
        2.0, "memory of the loaded model, as a multiple of the stable model's", REFUSES_RELEASE,
        low=0.0, high=1e6, above_low=True)
    latency_ms: float = limit(
        60_000.0, "time per token of one request", REFUSES_RELEASE, low=0.0, high=1e9, above_low=True, unit="ms")
    tokens_per_second: float = limit(
        0.0, "tokens per second of many requests", REFUSES_RELEASE, Looser.DOWN, low=0.0, high=1e9)
    memory_gib: float = limit(
        1024.0, "memory of the loaded model", REFUSES_RELEASE, low=0.0, high=1e6, above_low=True, unit="GiB")


@dataclass(frozen=True, slots=True)
class SupplyBounds:
    """What the operator's own models must be before any weight is read."""

    licences: tuple[str, ...] = limit(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "unlicense"),
        'licences a model may have, as its card says: "unknown" where it says none, "other:its-name" for one of its '
        'own', REFUSES_INPUT, Looser.MORE,
    )
    formats: tuple[str, ...] = limit(
        ("safetensors",), "formats weights are read from", REFUSES_INPUT, Looser.MORE, choices=("safetensors",))
    remote_code: bool = limit(
        False, "code that comes with a model is never run", REFUSES_INPUT, choices=(False,))
    parents: tuple[str, ...] = limit(
        (), "digests of the models that a life may begin with; none named: any", REFUSES_INPUT, Looser.NAMED)


@dataclass(frozen=True, slots=True)
class GateBounds:
    """How sure a release has to be."""

    alpha: float = limit(
        0.05, "chance, over the whole life, of ever releasing a model that is no better", REFUSES_RELEASE,
        low=1e-9, high=0.5,
    )
    d0: float = limit(0.0, "gain in accuracy that must be exceeded", REFUSES_RELEASE, Looser.DOWN, low=0.0, high=0.5)
    least_gain: float = limit(
        0.03, "gain worth finding: testing stops once as much is refuted", "stops the test", Looser.LONE,
        low=0.0, high=0.9, above_low=True,
    )
    max_noise: float = limit(
        0.005, "share of items on which a model may disagree with itself under another batching", REFUSES_RELEASE,
        low=0.0, high=1.0,
    )
    procedure: str = limit(
        "lifetime", 'what alpha bounds: "lifetime", the chance of any false release; "e-lond", their share',
        REFUSES_RELEASE, Looser.LATER, choices=("lifetime", "e-lond"),
    )
    items: str = limit(
        "vault", 'what a nomination is judged on: the sealed "vault", or "fresh" items drawn for it alone',
        REFUSES_RELEASE, Looser.LONE, choices=("vault", "fresh"),
    )
    approval: str = limit(
        "none", 'what passed the gate is released at once ("none"), or once the operator says so ("required")',
        AWAITS_OPERATOR, Looser.LATER, choices=("required", "none"),
    )
    watch_alpha: float = limit(
        0.05, "chance that the watch after a release rolls back a model that is no worse; less finds less",
        ROLLS_BACK, Looser.DOWN, low=0.0, high=0.5, above_low=True,
    )
    watch_items: int = limit(
        2000, "new items of the targets, and of each guard, that the watch may use; 0: no watch", ROLLS_BACK,
        Looser.DOWN, low=0, high=10**6,
    )


@dataclass(frozen=True, slots=True)
class CodeBounds:
    """What must be the same when a release is written as when it was asked for."""

    modules: tuple[str, ...] = limit(
        (
            "safety", "state", "loops/cycle.py", "loops/loop.py", "daemon/wiring.py", "daemon/service.py",
            "daemon/runner.py", "daemon/handover.py", "daemon/kinds.py", "daemon/rooms.py", "daemon/worker.py",
            "daemon/pool.py", "daemon/nursery.py", "daemon/genesis.py", "daemon/bounds_in_force.py",
        ),
        "files and folders of the program whose bytes must not change", STOPS_RELEASES, Looser.FEWER,
    )
    vault: bool = limit(
        True, "the bytes of vault and guards must not change", STOPS_RELEASES, Looser.DOWN, choices=(True,))
    bounds: bool = limit(True, "the bounds in force must not change", STOPS_RELEASES, Looser.DOWN, choices=(True,))


@dataclass(frozen=True, slots=True)
class BreakerBounds:
    """When the service stops by itself."""

    consecutive_failures: int = limit(5, "outermost cycles in a row that crash or time out", PAUSES, low=1, high=10**6)
    stop_file: str = limit("STOP", "a file of this name in the state folder pauses at once", PAUSES, Looser.LONE)
