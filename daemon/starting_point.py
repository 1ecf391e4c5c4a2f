"""`kaizend init`: the two files to start from, every key explained."""

from __future__ import annotations

from pathlib import Path

from daemon.places import BOUNDS_NAME, CONFIG_NAME
from safety.bounds import DEFAULT_TOML
from state.errors import UserError, in_one_line

CONFIG_TOML = """\
# What kaizend shall do. Paths are relative to this file. What it may never exceed is in bounds.toml.

seed = 0                                  # the same seed, models and data repeat a run

[models]
start = "models/expert-a"                 # what `stable` is at first
base = "models/base"                      # what the parents were fine-tuned from; merges add differences to it
parents = ["models/expert-a", "models/expert-b"]       # a folder with a LoRA adapter over the base will do, too

# Training rows: prompt and answer, or messages, or text; or for dpo prompt, chosen and rejected. As JSON lines, CSV,
# Parquet or text.
[data]
a = "data/a.jsonl"

# A target is what shall get better; a guard is what must not get worse.
# Sources: jsonl (path; the file is read once, at the first start), reasoning_gym (generator, config), bilingual
# (family: the demo's own).
[[tasks]]
name = "sums"
role = "target"
vault_items = 2000                        # sealed; only the gate reads them
verifier = "reasoning_gym"                # exact, numeric or reasoning_gym
# second_verifier = "numeric"             # asked beside it in reinforcement: an alarm where they disagree on over 2 %
source = { kind = "reasoning_gym", generator = "chain_sum", config = { min_terms = 2, max_terms = 2 } }

[[tasks]]
name = "questions"
role = "guard"
guard_items = 800
source = { kind = "jsonl", path = "data/questions.jsonl" }

[service]
state = "var"                             # ledger, artefacts, and the links `stable` and `working`
device = "auto"                           # auto, cpu or cuda
workers = 1                               # worker processes; with one, a run repeats to the bit
stop_seconds = 60                         # how long a stop may wait for the job in flight
# heads_file = "/mnt/elsewhere/heads.jsonl"     # every signed head of the ledger is appended here as well
# signing_key = "/etc/kaizend/signing.key"      # a key of your own; otherwise the first start makes one in `state`

[budget]                                  # of one outermost cycle, everything inside it included
seconds = 14400
tokens = 100_000_000
trials = 512

[architecture]
space = "parameter"                       # parameter (merges), data_flow (paths through layers) or both in turn
search = "cmaes"                          # cmaes, m2n2 or random
operators = ["task_arithmetic"]           # each gets a stage of its own; docs/operators.md says what there are
patience = 24                             # merges in a row without a promotion before training starts
novelty = 0.0                             # above 0: a point is drawn again where every gene is this near to one tried
guard_items = 0                           # above 0: a winner must not be shown worse on so many search items a guard
guard_margin = 0.03                       # loss on a guard that is borne there
# With search = "m2n2", an archive of models that are mated by what each can do that the other cannot:
# archive = 16                            # members; each is a model on disk
# objectives = ["quality"]                # also size, latency, forgetting (needs guard_items): then NSGA-II selects
# separate_splits = false                 # a crossover splits attention at a point of its own
# most_alike = 1.0                        # below 1: members whose changes from the base have this cosine are not mated,
#                                         # nor a pair of which the second solves nothing that the first does not

[pipeline]
stages = ["sft", "grpo"]                  # in the order in which each goes on from what the one before it gained; "dpo"
#                                         # too, between them, once pipeline.stages of bounds.toml allows it
children = 0                              # of eta recipes at the end of a rung one goes on; this many others become
#                                         # children of it, which go on from its checkpoint with mutated settings
sampler = "tpe"                           # tpe or random: where new recipes come from
# pair_prompts = 128                      # dpo: search items that a model answers to make pairs of its own; 0: none
# pair_samples = 8                        # and how often each
# Which rows of each source are trained on is searched where there is more than one option (else all are):
# [pipeline.ranges]
# deduplicate = ["none", "exact", "near"] # the same text after normalising; and nearly the same
# lengths = [[0.0, 1.0], [0.05, 0.95]]    # quantiles of the number of words
# qualities = [1.0, 0.8]                  # the share that is kept, best first by a fixed heuristic
# perplexities = [[0.0, 1.0], [0.05, 0.9]]  # quantiles of the answer's loss under the model that is trained
# tilt = 1.5                              # how far the tuner may move a source's share; 0: only by what sources pay

[reward]
learned = false                           # true: a reward model, trained on right against wrong answers of the model's
                                          # own, may be one of the features; bounds.toml's reward.features must name it
# learned_every = 8                       # segments (in which success is rare) until it is trained anew
# pair_prompts = 256                      # prompts that are answered for its pairs, each eight times
# [reward.levels]                         # easier configs of a target's generator, from easy to hard: reinforcement
#                                         # asks at the level that teaches most; judged is the target as it is
# sums = [{ max_digits = 1 }, { max_digits = 2 }]
"""


def write_starting_point(folder: Path) -> list[Path]:
    """Write both files. Raises UserError where one exists already or the folder cannot be written."""
    texts = {folder / CONFIG_NAME: CONFIG_TOML, folder / BOUNDS_NAME: DEFAULT_TOML}
    for path in texts:
        if path.exists():
            raise UserError(f"{path} exists: it is left as it is")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text)
    except OSError as error:
        raise in_one_line("write to", folder, error) from error
    return list(texts)
