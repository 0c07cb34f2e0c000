"""One table of the tool commands; their options are the signatures of the functions that it names.

A function is imported when its command runs, so `llama2-pl --help` loads neither torch nor lightning.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


class Tool(NamedTuple):
    """A tool command.

    Attributes:
        target: `module:function`; the function's parameters are the command's options.
        about: the line shown by `llama2-pl --help`.
    """

    target: str
    about: str


TOOLS: dict[str, Tool] = {
    "demo": Tool("llama2_pl.rlhf.recipe:demo", "the whole recipe on the embedded data, with its report"),
    "recipe": Tool("llama2_pl.rlhf.recipe:recipe", "run a recipe file; finished stages are skipped"),
    "configs": Tool("llama2_pl.commands.configs:show", "print the folder of the packaged configs"),
    "tokenizer train": Tool(
        "llama2_pl.data.vocabulary:train_tokenizer_on_files", "train a SentencePiece BPE tokenizer"
    ),
    "preview": Tool("llama2_pl.commands.preview:preview", "a dialogue's tokens with the loss mask coloured"),
    "data default": Tool("llama2_pl.data.default:write_default_data", "write the embedded default data set"),
    "data pairs": Tool(
        "llama2_pl.data.convert:convert_pairs", "preference files of any format, held-out split, prompts"
    ),
    "data clean": Tool(
        "llama2_pl.data.cleaning.clean:clean_corpus",
        "a corpus without duplicates, boilerplate and personal data, and the ledger of it",
    ),
    "data audit": Tool(
        "llama2_pl.data.audit:audit_corpus", "pronouns, identities, languages, toxicity of a corpus (§4.1)"
    ),
    "collect": Tool(
        "llama2_pl.rlhf.collect:collect_preferences", "sample two variants, rate them with the oracle"
    ),
    "distill": Tool(
        "llama2_pl.rlhf.distill:distill_safety",
        "safety context distillation: answers under a safety preprompt, kept where they are safer",
    ),
    "rlhf": Tool("llama2_pl.rlhf.driver:rlhf", "versions 1 to N: ratings, reward models, best of K, PPO"),
    "rlhf held-out": Tool(
        "llama2_pl.rlhf.versions:split_held_out", "prompts to choose by, prompts to report on"
    ),
    "rlhf judges": Tool(
        "llama2_pl.rlhf.judges:measure_judges",
        "reward models on held-out pairs, and what the newest batch taught",
    ),
    "rlhf temperature": Tool(
        "llama2_pl.rlhf.versions:tune_temperature", "the temperature with the best of K samples"
    ),
    "rlhf pool": Tool("llama2_pl.rlhf.pool:update_pool", "best samples of all versions, scored anew"),
    "rlhf choose": Tool(
        "llama2_pl.rlhf.versions:choose_checkpoint", "a version's checkpoint, against the version before"
    ),
    "rlhf compare": Tool("llama2_pl.rlhf.versions:compare_versions", "all versions on held-out prompts"),
    "rlhf study": Tool("llama2_pl.rlhf.study:study", "one loop with overrides and several seeds, one table"),
    "winners": Tool(
        "llama2_pl.modules.rejection_sampling:merge_winners",
        "the best answer to each prompt, as dialogues to fine-tune on",
    ),
    "reward-scaling": Tool(
        "llama2_pl.rlhf.scaling:reward_scaling", "reward accuracy by weekly batch and model size (Fig. 6)"
    ),
    "evaluate": Tool("llama2_pl.rlhf.evaluate:evaluate", "evaluate models and reward models"),
    "benchmark": Tool(
        "llama2_pl.evaluation.benchmarks:benchmark", "academic benchmarks by lm-evaluation-harness (Table 3)"
    ),
    "contamination": Tool(
        "llama2_pl.evaluation.contamination:contamination",
        "how much of an evaluation set was trained on, and whether it changed the result",
    ),
    "gatt": Tool("llama2_pl.rlhf.gatt:measure_ghost_attention", "is an instruction kept, turn by turn"),
    "gatt cases": Tool(
        "llama2_pl.rlhf.gatt:write_attribute_cases",
        "conversations that ask for a hobby or a figure (Table 30)",
    ),
    "gatt study": Tool("llama2_pl.rlhf.gatt:gatt_study", "Ghost Attention on and off, several seeds"),
    "refusals train": Tool(
        "llama2_pl.rlhf.refusals:train_refusal_classifier", "a refusal classifier from labelled answers"
    ),
    "refusals measure": Tool(
        "llama2_pl.rlhf.refusals:measure_refusals",
        "false refusals on helpfulness and borderline prompts (Fig. 33)",
    ),
    "safety shares": Tool("llama2_pl.rlhf.safety:write_shares", "nested shares of safety data, 1 to 100 %"),
    "safety scores": Tool(
        "llama2_pl.rlhf.safety:safety_scores", "models on both axes, with the left tail of safety (Fig. 15)"
    ),
    "profile": Tool(
        "llama2_pl.commands.profile:profile", "where the time of a stage goes: a table and a trace"
    ),
    "export": Tool("llama2_pl.checkpoints.ours:export_checkpoint", "a checkpoint as a Hugging Face folder"),
    "report": Tool("llama2_pl.report.build:build_report", "result files of a run as report.html"),
    "chat": Tool("llama2_pl.app.chat:chat", "talk to a checkpoint in the terminal"),
}


def find_tool(args: list[str]) -> tuple[str, list[str]] | None:
    """The tool that the arguments begin with, longest name first, and the arguments that are left."""
    for words in (2, 1):
        name = " ".join(args[:words])
        if len(args) >= words and name in TOOLS:
            return name, args[words:]
    return None


def load(tool: Tool) -> Callable[..., Any]:
    """Import the function of a tool."""
    module, function = tool.target.split(":")
    return getattr(import_module(module), function)


def parse_tool(name: str, args: list[str]) -> dict[str, Any]:
    """The arguments of a tool's function; its signature is the list of options."""
    from jsonargparse import ActionConfigFile

    from llama2_pl.commands.parsing import ShortErrors, restrict_imports

    restrict_imports()
    parser = ShortErrors(prog=f"llama2-pl {name}", description=TOOLS[name].about, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="options from a YAML file")
    parser.add_function_arguments(load(TOOLS[name]), as_positional=False)
    options = parser.instantiate(parser.parse_args(args)).as_dict()
    options.pop("config")
    return options


def run_tool(name: str, args: list[str]) -> None:
    """Parse the arguments and call the tool's function."""
    load(TOOLS[name])(**parse_tool(name, args))
