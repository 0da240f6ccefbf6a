"""The configuration of a run: one dataclass per owner. Each field states its default, help, unit and limits.

The dataclasses decide every type. The configuration is constant after `load_config`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


class UsageError(Exception):
    """An impossible request of the user: one sentence, shown without a traceback, exit code 2."""


def option(default: Any, help: str, **limits: Any) -> Any:
    """Returns a field with its line of help (unit included) and limits: choices, at_least, above, at_most, below."""
    metadata = {"help": help, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


FORMAT_NAMES = (
    *("grounding", "hermes", "crop_video", "qwen_xml", "tool_code", "video_zoom", "conan"),
    *("sage", "boxed", "retrieve", "glue", "timestep", "time_caption", "frame_select"),
)
POSITION_RULES = ("max_all", "hf5")
FREEZES = ("none", "tower", "all")
TRACKERS = ("tensorboard", "wandb", "trackio", "swanlab")
DECODER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataConfig:
    sft: list[str] = option(
        ["clueworld"],
        "SFT trajectories: files as [FORMAT:]PATH[*WEIGHT], or generated ones as clueworld[:NUMBER], 4096 by default; "
        "clueworld_base[:NUMBER] has perception only",
    )
    rl: list[str] = option(
        ["clueworld"], "RL questions: files as [FORMAT:]PATH[*WEIGHT], or clueworld[:NUMBER], 4096 by default"
    )
    eval: list[str] = option(
        ["clueworld"], "held-out questions: files as [FORMAT:]PATH, or clueworld[:NUMBER], 512 by default"
    )
    video_root: str | None = option(
        None, "folder that videos may not leave and relative ones start from (null: each data file's own)"
    )
    video_prefixes: list[str] = option(
        [], "FROM=>TO rules for the paths of videos in data files; the first that fits is applied"
    )
    bad_samples: str = option(
        "stop", "a record that cannot be used ends the run, or is passed over and named", choices=("stop", "skip")
    )
    max_unreadable_share: float = option(
        0.25,
        "RL: share of a step's prompts whose video may be unreadable (one always may); above it the run ends",
        at_least=0,
        at_most=1,
    )
    group_by_film: bool = option(
        False,
        "bring up to 8 questions about one film together in a batch, and train the film's tokens once per packed row",
    )


@dataclass(frozen=True)
class VideoConfig:
    overview_fps: float = option(2.0, "frames per second of the overview", above=0)
    crop_fps: float = option(2.0, "frames per second of a crop", above=0)
    overview_tokens: int = option(16384, "quota of the overview, in merged tokens of 28 x 28 px", at_least=1)
    coarse_tokens: int = option(2048, "quota of a coarse crop, in merged tokens", at_least=1)
    medium_tokens: int = option(4096, "quota of a medium crop, in merged tokens", at_least=1)
    fine_tokens: int = option(6144, "quota of a fine crop, in merged tokens", at_least=1)
    min_frames: int = option(4, "fewest frames of a clip", at_least=2)
    max_frames: int = option(768, "most frames of a clip", at_least=2)
    max_tokens_per_grid: int = option(768, "most merged tokens of one grid of 2 frames", at_least=1)
    min_window_seconds: float = option(1.0, "shortest window a crop shows, in seconds", above=0)
    frame_policy: str = option("linspace", "how frames are spread over a window", choices=("linspace", "uniform"))
    cache_megabytes: int = option(512, "memory for decoded clips, in MiB", at_least=0)
    stall_seconds: float | None = option(
        60.0, "most seconds of decoding without a frame, in a process that is then killed (null: no limit)", at_least=0
    )
    overview_cache: str | None = option(
        None, "folder on a local disk that keeps decoded overviews for later epochs and runs (null: none)"
    )
    overview_cache_gigabytes: float = option(
        50.0, "bound of that folder, in GB; the overviews unused for longest are removed", above=0
    )
    prefetch: bool = option(True, "decode the clips of the next step while this step trains")

    def shown_by(self) -> dict[str, Any]:
        """Returns the fields for the choice of frames and tokens, as part of a measurement's cache key."""
        unrelated = {"cache_megabytes", "stall_seconds", "prefetch", "overview_cache", "overview_cache_gigabytes"}
        return {name: value for name, value in asdict(self).items() if name not in unrelated}


@dataclass(frozen=True)
class TDAMConfig:
    rule: str = option(
        "spans", "which rows lose sight of which video", choices=("off", "spans", "turns", "isolated", "reference")
    )
    share: float = option(0.1, "share of the tool-using samples that the rule is applied to", at_least=0, at_most=1)


@dataclass(frozen=True)
class PromptConfig:
    format: str = option(
        "grounding",
        "how a turn is written: a name of docs/formats.md, or your own as FILE.py:NAME",
        choices_or_file=FORMAT_NAMES,
    )
    style: str = option("full", "length of the system prompt", choices=("full", "brief"))


@dataclass(frozen=True)
class SFTConfig:
    steps: int = option(600, "optimizer steps", at_least=0)
    samples_per_step: int = option(256, "samples per optimizer step, over all ranks", at_least=1)
    max_tokens_per_micro_batch: int = option(40000, "tokens in one packed row", at_least=1)
    learning_rate: float = option(1e-5, "peak learning rate", above=0)
    warmup_steps: int = option(60, "steps of linear warm-up", at_least=0)
    schedule: str = option("cosine", "learning rate after the warm-up", choices=("cosine", "constant"))
    weight_decay: float = option(0.0, "decoupled weight decay", at_least=0)
    betas: list[float] = option([0.9, 0.999], "the two moments' decay rates of AdamW", at_least=0, below=1)
    freeze_vision: str = option("tower", "vision weights kept as they are (tower: not the projector)", choices=FREEZES)


@dataclass(frozen=True)
class GRPOConfig:
    steps: int = option(400, "rollout batches", at_least=0)
    prompts_per_step: int = option(32, "questions per batch, over all ranks", at_least=1)
    group_size: int = option(16, "episodes per question", at_least=2)
    loss: str = option("grpo", "policy loss", choices=("grpo", "dr_grpo", "dapo", "gspo", "cispo"))
    advantage: str = option("grpo", "baseline and scale of a group's rewards", choices=("grpo", "dr_grpo", "rloo"))
    learning_rate: float = option(1e-6, "learning rate after the warm-up", above=0)
    warmup_steps: int = option(0, "optimizer steps of linear warm-up", at_least=0)
    weight_decay: float = option(0.01, "decoupled weight decay", at_least=0)
    clip_low: float = option(0.2, "the probability ratio is clipped below 1 - clip_low", at_least=0, at_most=1)
    clip_high: float = option(0.3, "the probability ratio is clipped above 1 + clip_high", at_least=0)
    kl_coef: float = option(0.0, "weight of the distance to the starting model (0: no reference model)", at_least=0)
    kl_kind: str = option("k3", "estimator of that distance", choices=("k1", "k2", "k3"))
    overlong: str = option(
        "exclude",
        "episodes out of turns, tokens or time: out of baseline and loss, out of the loss only, or kept",
        choices=("exclude", "mask", "keep"),
    )
    max_resample_rounds: int = option(
        2,
        "dynamic sampling: most rollout rounds that replace groups of equal rewards (0: such groups stay)",
        at_least=0,
    )
    save_every_steps: int | None = option(
        None, "steps between checkpoints of this stage (null: as the run's)", at_least=0
    )
    updates_per_batch: int = option(1, "optimizer steps per batch", at_least=1)
    importance_cap: float | None = option(
        2.0, "cap of the trainer-to-rollout probability ratio (null: no correction)", above=0
    )
    max_tokens_per_micro_batch: int = option(32768, "tokens in one packed row", at_least=1)
    freeze_vision: str = option("none", "vision weights kept as they are (tower: not the projector)", choices=FREEZES)


@dataclass(frozen=True)
class RolloutConfig:
    max_turns: int = option(6, "most assistant turns of an episode", at_least=1)
    calls_per_turn: int = option(
        5, "calls of a turn that are answered, side by side; a fault answers each further one", at_least=1, at_most=5
    )
    tool_deadline_seconds: float | None = option(
        None, "most seconds of a call; a later result is a fault (null: no limit)", above=0
    )
    max_new_tokens_per_turn: int = option(8192, "most tokens sampled in a turn", at_least=1)
    max_context_tokens: int = option(32768, "most tokens of an episode, video included", at_least=1)
    temperature: float = option(1.0, "sampling temperature", above=0)
    top_p: float = option(1.0, "share of the probability mass that is sampled from", above=0, at_most=1)
    cache_tokens: int | None = option(
        None, "tokens whose keys and values a rank holds at a time; further episodes wait (null: by memory)", at_least=1
    )
    deadline_seconds: float | None = option(
        None, "most seconds of the model's own time for an episode, without tools and company (null: no limit)", above=0
    )
    engine: str = option(
        "native", "native samples with the training model; vllm in workers of vLLM", choices=("native", "vllm")
    )
    sync: str = option(
        "tensors",
        "vllm: how weights reach the workers, over the connection or through a folder in output_dir",
        choices=("tensors", "disk"),
    )
    vllm_python: str | None = option(None, "vllm: interpreter of the environment with vLLM (null: this one)")
    vllm_options: list[str] = option([], "vllm: arguments of vLLM's engine in workers started here, as NAME=VALUE")
    servers: list[str] = option(
        [], "vllm: workers that run already, as HOST:PORT, dealt out to the ranks (none: each rank starts one)"
    )
    worker_restarts: int = option(2, "vllm: how often a worker that is lost is started again", at_least=0)
    worker_silence_seconds: float = option(
        600.0, "vllm: a worker that says nothing for so long while asked, also at its start, is lost", above=0
    )
    placement: str = option(
        "local",
        "vllm: each rank starts a worker on its machine, or Ray starts workers anywhere",
        choices=("local", "ray"),
    )
    workers: int | None = option(None, "ray: number of workers for all ranks (null: one for each rank)", at_least=1)
    lag: int = option(
        0,
        "steps that sampling runs ahead: 1 samples the next step's episodes with the weights of today",
        choices=(0, 1),
    )
    max_lag: int = option(1, "groups sampled with weights of more steps before are dropped and counted", at_least=0)


@dataclass(frozen=True)
class RewardConfig:
    variant: str = option("strict", "form of the reward", choices=("strict", "paper", "public_code"))
    decay: float = option(0.05, "bonus lost per call beyond the clues", at_least=0, at_most=1)
    functions: list[str] = option([], "reward functions of your own, as FILE.py:FUNCTION, added with weight 1")


@dataclass(frozen=True)
class DeepSpeedConfig:
    stage: int = option(0, "ZeRO stage", choices=(0, 1, 2, 3))
    offload: bool = option(False, "keep optimizer states in host memory")


@dataclass(frozen=True)
class EvaluateConfig:
    num_questions: int = option(256, "held-out questions", at_least=1)
    samples: int = option(4, "sampled episodes per question, beside one greedy one", at_least=1)
    every_steps: int | None = option(
        None, "steps between greedy evaluations within a stage, each with a checkpoint (null: off)", at_least=1
    )
    num_questions_inside: int | None = option(
        None, "held-out questions of an evaluation within a stage, drawn by the seed (null: all)", at_least=1
    )
    tasks: list[str] = option(
        [],
        "benchmarks (videomme, mlvu, ..), data sources as in data.eval, or tasks of your own as FILE.py:NAME",
    )
    data_root: str | None = option(None, "folder of the benchmarks' released files")
    limit: int | None = option(None, "questions of a task, drawn by the seed (null: the whole files)", at_least=1)
    mode: str = option(
        "tool",
        "with the crop tool, or one turn without a tool: the answer alone (direct), or reasoning and answer (think)",
        choices=("tool", "direct", "think"),
    )
    prompt_style: str = option(
        "ours", "words of the question: ours, or those of another harness", choices=("ours", "lmms", "vlmevalkit")
    )
    subtitles: str = option(
        "none",
        "subtitles in the question: of the overview's frames or all; window: of each crop, in its observation",
        choices=("none", "covering_frames", "all", "window"),
    )
    final_answer: bool = option(False, "after the last turn that may call, one more turn that must answer")
    questions_per_batch: int = option(
        64, "questions that a rank asks side by side; a kill loses one batch of answers", at_least=1
    )
    votes: int = option(1, "answers per question, by majority; 1 is greedy, more are sampled", at_least=1)
    evidence: str = option(
        "score",
        "score the crops, or also run with each crop swapped for as long a clip from elsewhere in the film",
        choices=("score", "swap"),
    )
    judge: str | None = option(
        None, "model that judges open answers (null: an open answer counts if its words equal the key's)"
    )
    judge_endpoint: str = option("http://127.0.0.1:8000/v1", "base URL of the judge's OpenAI-compatible endpoint")
    judge_api_key_env: str | None = option(
        "OPENAI_API_KEY", "environment variable that holds the judge's key (null: the endpoint needs none)"
    )
    endpoint: str = option("http://127.0.0.1:8000/v1", "base URL of the endpoint that serves model=openai:NAME")
    api_key_env: str | None = option("OPENAI_API_KEY", "environment variable of the endpoint's key (null: no key)")
    image_detail: str = option("auto", "detail of the frames for the endpoint", choices=("auto", "low", "high"))
    send_sampling: bool = option(True, "send temperature and top_p to the endpoint (false: the endpoint's own)")
    prompt_price: float | None = option(None, "the endpoint's price of a million prompt tokens", at_least=0)
    completion_price: float | None = option(None, "the endpoint's price of a million reply tokens", at_least=0)
    shard: str | None = option(None, "part of the films as INDEX/COUNT, such as 1/3; a run without shard merges them")
    papers: bool = option(False, "print the papers' rows below the table, each with its protocol")


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = option(
        0,
        "rank of LoRA adapters, which are trained instead of the model's own weights (0: none, all is trained)",
        at_least=0,
    )
    alpha: int = option(32, "adapters count alpha / rank times", at_least=1)
    targets: list[str] = option(
        list(DECODER_MATRICES),
        "matrices of the decoder that get adapters; the vision tower gets none and is frozen",
        choices=DECODER_MATRICES,
    )


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = option("sft_rl", "name of a packaged recipe, or a YAML file")
    model: str = option(
        "tiny",
        "tiny (ships with the package), scratch (tiny, random weights), a Qwen2.5-VL folder; evaluate: openai:NAME too",
    )
    output_dir: str = option("runs/{recipe}", "folder for everything that the run writes")
    seed: int = option(0, "of weights, data order, masks and sampling", at_least=0)
    resume: str = option("no", "no, auto (the last complete checkpoint in output_dir), or a checkpoint folder")
    stages: list[str] = option(["sft", "grpo"], "stages in order", choices=("direct", "sft", "grpo"))
    save_every_steps: int = option(50, "steps between checkpoints (0: at the end of a stage only)", at_least=0)
    save_every_minutes: float | None = option(
        None, "minutes between checkpoints, beside the steps (null: off)", above=0
    )
    save_in_background: bool = option(
        True, "write checkpoints from a copy in host memory while training goes on (false: training waits)"
    )
    keep_checkpoints: int = option(2, "newest checkpoints kept, beside the best evaluated of each stage", at_least=1)
    tracker: list[str] = option(
        ["tensorboard"],
        "get the numbers of metrics.jsonl too, offline unless the environment asks",
        choices=TRACKERS,
    )
    tools: list[str] = option(
        [], "tools beside crop_video: subtitle_search, subtitle_window, frame_grid, or your own as FILE.py:NAME"
    )
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    dtype: str = option("float32", "type of weights and activations in the model", choices=("float32", "bfloat16"))
    grad_clip: float = option(1.0, "largest gradient norm of an optimizer step", above=0)
    max_skipped_steps: int = option(
        5, "optimizer steps in a row that may be skipped because loss or gradient are not finite", at_least=1
    )
    position_rule: str | None = option(
        None,
        "where text goes on after a clip: past all three position axes, or past height and width as in transformers 5 "
        "(null: as the model's config.json says, else max_all)",
        choices=POSITION_RULES,
    )
    gradient_checkpointing: bool = option(False, "compute activations anew in the backward pass: slower, less memory")
    data: DataConfig = field(default_factory=DataConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    tdam: TDAMConfig = field(default_factory=TDAMConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def stage_steps(config: TrainConfig, stage: str) -> int:
    """Returns the optimizer steps of a stage. `direct` takes the sum of SFT and GRPO, for a fair comparison."""
    steps = {"sft": config.sft.steps, "grpo": config.grpo.steps}
    return steps.get(stage, sum(steps.values()))
