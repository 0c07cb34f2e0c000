"""The command line: strict, closed to foreign imports, callable many times, with errors that read like advice."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from jsonargparse._common import parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

from llama2_pl import __main__ as process
from llama2_pl.callbacks.common import RunStopped
from llama2_pl.cli import main
from llama2_pl.commands.parsing import advice, allowed_imports
from llama2_pl.commands.preview import preview
from llama2_pl.commands.registry import TOOLS, find_tool, load, parse_tool
from llama2_pl.commands.training import SaveRunConfig
from llama2_pl.modules import trainer as trainers
from llama2_pl.rlhf.recipe import execute

USERS_MODULE = """
import os, signal
from lightning.pytorch.demos.boring_classes import BoringModel

class Mine(BoringModel):
    def __init__(self, lr: float = 0.5, fails: bool = False, terminates: bool = False, interrupted: bool = False):
        super().__init__()
        self.save_hyperparameters({"lr": lr})
        if fails:
            raise ValueError("backbone.dim is 7: give a multiple of n_heads")
        self.signals = [signal.SIGTERM] * terminates + [signal.SIGINT] * interrupted

    def training_step(self, batch, batch_idx):
        for number in self.signals:
            os.kill(os.getpid(), number)
        return super().training_step(batch, batch_idx)

    def on_train_end(self):
        print(f"trained with lr {self.hparams.lr}", flush=True)  # one write: two processes share the pipe
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config that trains a user's own module for two steps, in a package that the user has allowed."""
    name = "users_package"
    (tmp_path / f"{name}.py").write_text(USERS_MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("LLAMA2_PL_ALLOW_IMPORTS", name)
    monkeypatch.setitem(
        parsing_settings, "import_path_verdicts", dict(parsing_settings["import_path_verdicts"])
    )
    monkeypatch.chdir(tmp_path)
    trainer = {
        "accelerator": "cpu",
        "max_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "run", "name": "", "version": ""},
        },
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"dirpath": "run", "filename": "last", "enable_version_counter": False},
            }
        ],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"class_path": f"{name}.Mine"}, "trainer": trainer}))
    return str(path)


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must end with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", *TOOLS):
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_shows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"llama2-pl {name}" in capsys.readouterr().out
    assert load(TOOLS[name]).__doc__


def test_a_tool_of_two_words_is_found_before_one_of_one() -> None:
    assert find_tool(["tokenizer", "train", "--seed", "1"]) == ("tokenizer train", ["--seed", "1"])
    assert find_tool(["preview", "--limit", "1"]) == ("preview", ["--limit", "1"])
    assert find_tool(["tokenizer"]) is None


@pytest.mark.parametrize("by_a_recipe", [False, True])
def test_lightning_starts_the_processes_of_the_other_devices(
    config: str, tmp_path: Path, by_a_recipe: bool
) -> None:
    words = ["fit", "-c", config, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    if by_a_recipe:
        stage = {"name": "a", "command": " ".join(words), "outputs": [str(tmp_path / "run/last.ckpt")]}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": [stage]}))
        words = ["recipe", "--recipe", "recipe.yaml", "--out", str(tmp_path / "made")]
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llama2_pl", *words]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained with lr 0.5") == 2


@pytest.mark.parametrize("by_a_recipe", [False, True])
def test_a_recipe_expects_that_its_trainings_start_without_a_checkpoint(
    config: str, by_a_recipe: bool, recwarn: pytest.WarningsRecorder
) -> None:
    (execute if by_a_recipe else main)(["fit", "-c", config, "--ckpt_path", "last"])
    said = " ".join(str(found.message) for found in recwarn)
    assert (
        f"no last.ckpt in {Path('run').resolve()}: the run starts from its beginning" in said
    ) is not by_a_recipe
    assert "there is no last checkpoint available" not in said


def test_an_unknown_command_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian'" in refused(["trian"], capsys)


@pytest.mark.parametrize("option", ["--trainer.max_step=3", "--trainer.max_stepz=3"])
def test_abbreviations_and_misspellings_are_refused_with_the_option_that_was_meant(
    option: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(["fit", "--config", config, option], capsys)
    assert "did you mean --trainer.max_steps?" in message
    assert len(message.splitlines()) <= 3


def test_an_unknown_key_of_a_config_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("extra.yaml").write_text("trainer: {max_stepz: 3}")
    assert "max_stepz" in refused(["fit", "--config", config, "--config", "extra.yaml"], capsys)


@pytest.mark.parametrize("command", ["fit", "preview"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"- 1\n", "holds a sequence"),
        (b"a: 1\nb: c: d\n", "mine.yaml:2:5: mapping values are not allowed here"),
        (b"a: \xf6\n", "no text file in UTF-8"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    content: bytes, problem: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "mine.yaml"
    good.write_text("{}")
    bad.write_bytes(content)
    message = refused([command, "-c", str(good), "--config", str(bad)], capsys)
    assert "mine.yaml" in message and problem in message
    assert "good.yaml" not in message and len(message.splitlines()) == 2


def test_a_config_may_be_a_pipe(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the shell's `-c <(…)`: it can be read once."""
    read, write = os.pipe()
    os.write(write, b"trainer: {max_stepz: 3}")
    os.close(write)
    assert "max_stepz" in refused(["fit", "-c", config, "-c", f"/dev/fd/{read}"], capsys)
    os.close(read)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lrr", "3"], "--model PretrainModule: Option 'lrr' is not accepted; did you mean lr?"),
        (["--model.lr", "abc"], '--model PretrainModule: Parser key "lr"'),
        (["--model.backbone", "tiny"], "$(llama2-pl configs)/backbone/tiny.yaml"),
        (["--model.backbone", "7BB"], "$(llama2-pl configs)/backbone/7B.yaml"),
    ],
)
def test_an_error_inside_a_class_names_the_class_and_the_help_that_lists_its_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(["fit", "--model", "PretrainModule", *options], capsys)
    assert text.startswith("llama2-pl fit: error: ") and message in text
    assert "llama2-pl fit --help and llama2-pl fit --model.help PretrainModule list the options" in text
    assert len(text.splitlines()) <= 3


def test_a_part_of_a_backbone_says_what_to_give_instead(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(["fit", "--model", "SFTModule", "--model.backbone.max_seq_len", "64"], capsys)
    assert "required: dim, n_layers, n_heads; give all of a backbone" in text
    assert "--model.max_seq_len" in text


def test_a_command_without_its_options_names_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\nllama2-pl fit --help lists the options" in refused(["fit"], capsys)


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--model=RewardModul", "RewardModule"), ("--data=PromptDataModul", "PromptDataModule")],
)
def test_a_misspelt_class_is_one_line_with_the_one_that_was_meant(
    option: str, meant: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(["fit", "-c", config, option], capsys)
    assert f"no class has this name; did you mean {meant}?" in message
    assert len(message.splitlines()) == 2


def test_an_unknown_option_of_a_model_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'learning_rate' is not accepted" in refused(
        ["fit", "-c", config, "--model.learning_rate=1"], capsys
    )


@pytest.mark.parametrize(
    "option", ["--model=os.system", "--model=antigravity.Thing", "--trainer.callbacks+=subprocess.Popen"]
)
def test_a_class_path_outside_the_allow_list_is_refused_before_its_import(
    option: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "LLAMA2_PL_ALLOW_IMPORTS" in refused(["fit", "--config", config, option], capsys)
    assert "antigravity" not in sys.modules


def test_a_bad_allow_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2_PL_ALLOW_IMPORTS", "good, two words")
    with pytest.raises(ValueError, match="'two words' is no import path"):
        allowed_imports()


def test_advice_is_silent_without_a_near_option() -> None:
    assert advice("unrecognized arguments: --zzz=1", ["--trainer.max_steps"]) == ""


def test_a_second_run_in_the_same_folder_keeps_both_configs(config: str) -> None:
    main(["fit", "--config", config])
    (first,) = Path("run").glob("config-*.yaml")
    first.rename(first.with_name("config-first.yaml"))  # the two runs may share a second
    main(["fit", "--config", config])
    assert len(list(Path("run").glob("config-*.yaml"))) == 2


def test_a_finished_run_resumed_changes_no_file(config: str) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("run").iterdir()}

    main(["fit", "--config", config])
    before = files()
    main(["fit", "--config", config, "--ckpt_path", "run/last.ckpt"])
    assert files() == before and {path.suffix for path in before} >= {".ckpt", ".yaml"}


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_takes_part_in_asking_for_the_folder_of_the_saved_config(
    rank: int, tmp_path: Path
) -> None:
    """`trainer.log_dir` waits for all ranks: asked by rank 0 alone, a run of two processes hangs."""
    asked, written = [], []

    class Trainer:
        is_global_zero = rank == 0
        strategy = SimpleNamespace(broadcast=lambda value: value)
        default_root_dir = str(tmp_path)

        @property
        def log_dir(self) -> str:
            asked.append(self)
            return str(tmp_path / "logs")

    parser = SimpleNamespace(save=lambda config, path, **_: written.append(Path(path)))
    callback = SaveRunConfig(parser, SimpleNamespace())  # type: ignore[arg-type]
    callback.setup(Trainer(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
    assert len(asked) == 1
    assert [path.parent for path in written] == [tmp_path / "logs"] * (rank == 0)


def test_the_saved_config_runs_again(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", config, "--model.lr=0.25"])
    (saved,) = Path("run").glob("config-*.yaml")
    assert yaml.safe_load(saved.read_text())["seed_everything"] == 1
    capsys.readouterr()
    main(["fit", "--config", str(saved)])
    assert "trained with lr 0.25" in capsys.readouterr().out


def test_a_printed_config_loads_to_itself(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", config, "--print_config"])
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
        Path(config).write_text(printed[-1])
    assert printed[0] == printed[1]


def test_explicit_options_win_over_the_checkpoint_s(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning 2.6 takes the checkpoint's 0.5 here (its issue 21455)."""
    main(["fit", "--config", config])
    main(
        ["fit", "--config", config, "--model.lr=0.125", "--trainer.max_steps=3", "--ckpt_path=run/last.ckpt"]
    )
    assert "trained with lr 0.125" in capsys.readouterr().out


def test_callbacks_add_up_over_configs(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text("trainer: {callbacks+: [{class_path: LearningRateMonitor}]}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--config", "more.yaml", "--print_config"])
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert [c["class_path"].split(".")[-1] for c in callbacks] == ["ModelCheckpoint", "LearningRateMonitor"]


def test_a_terminated_training_ends_with_143(config: str) -> None:
    """Lightning alone ends with 0, which a scheduler takes for success."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, "--model.terminates=true"])
    assert stop.value.code == 143


def test_a_training_that_ctrl_c_ended_is_saved_and_ends_with_130(config: str) -> None:
    Path("stop.yaml").write_text(
        "trainer: {callbacks+: [{class_path: llama2_pl.callbacks.PreemptionCheckpoint}]}"
    )
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, "--config", "stop.yaml", "--model.interrupted=true"])
    assert stop.value.code == 130
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 1


def test_a_run_says_what_it_replaces_where_its_result_is_and_that_nothing_was_left(
    config: str,
    recwarn: pytest.WarningsRecorder,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    seen = []
    for words in ([], ["--ckpt_path", "last"], []):
        main(["fit", "--config", config, *words])
        replaced = any("run/last.ckpt of an earlier run will be replaced" in str(w.message) for w in recwarn)
        nothing = "nothing left to train: the run stands at its end, step 2" in capsys.readouterr().out
        seen.append((replaced, nothing, "run/last.ckpt" in caplog.text))
        recwarn.clear()
        caplog.clear()
    assert [row[:2] for row in seen] == [(False, False), (False, True), (True, False)]
    assert seen[0][2] and seen[2][2]


def test_a_run_goes_to_the_folder_that_out_names(config: str) -> None:
    main(["fit", "--config", config, "--trainer.default_root_dir", "run", "--out", "mine"])
    assert not Path("run").exists()
    assert Path("mine/last.ckpt").exists()  # no metric is logged, so no metrics.csv
    (saved,) = Path("mine").glob("config-*.yaml")
    main(["fit", "--config", str(saved), "--ckpt_path", "last", "--trainer.max_steps", "3"])
    assert torch.load("mine/last.ckpt", weights_only=True)["global_step"] == 3


def test_an_open_wandb_run_is_finished(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = []
    fake = SimpleNamespace(run=object(), finish=lambda: finished.append(True))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ValueError, match="multiple of n_heads"):
        main(["fit", "--config", config, "--model.fails=true"])
    assert finished == [True]


@pytest.mark.parametrize(
    "error", [MisconfigurationException, ValueError, PermissionError, RunStopped, KeyError]
)
def test_what_lightning_advises_is_one_line_and_a_fault_of_ours_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def fails() -> None:
        raise error("the profiler can only be one of these")

    monkeypatch.setattr(process, "run", fails)
    if error is KeyError:
        with pytest.raises(KeyError):
            process.main()
        return
    assert process.main() == 1
    assert capsys.readouterr().err.startswith("llama2-pl: error: the profiler can only be one of these\n")


def test_an_error_is_one_line_and_status_1(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llama2-pl", "fit", "--config", config, "--model.fails=true"])
    assert process.main() == 1
    err = capsys.readouterr().err
    message = err[err.index("llama2-pl: error: ") :].splitlines()
    assert message[0] == "llama2-pl: error: backbone.dim is 7: give a multiple of n_heads"
    assert "LLAMA2_PL_DEBUG=1" in message[1] and len(message) == 2


def test_debug_shows_where_an_error_comes_from(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["llama2-pl", "fit", "--config", config, "--model.fails=true"])
    monkeypatch.setenv("LLAMA2_PL_DEBUG", "1")
    with pytest.raises(ValueError, match="multiple of n_heads"):
        process.main()


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "run", interrupted)
    assert process.main() == 130


@pytest.mark.parametrize("fastest", ["bf16-mixed", "32-true"])
def test_precision_auto_is_the_device_s_fastest(config, monkeypatch, fastest) -> None:
    monkeypatch.setattr(trainers, "best_precision", {"cpu": fastest}.get)
    seen = []
    monkeypatch.setattr(trainers.Trainer, "fit", lambda self, *_, **__: seen.append(self.precision))
    main(["fit", "--config", config, "--trainer.precision", "auto"])
    main(["fit", "--config", config, "--trainer.precision", "64-true"])
    assert seen == [fastest, "64-true"]


@pytest.mark.parametrize(
    ("accelerator", "there", "expected"),
    [
        ("auto", "cuda", "cuda"),
        ("auto", None, "cpu"),
        ("gpu", "mps", "mps"),
        ("cpu", "cuda", "cpu"),
        (CPUAccelerator(), "cuda", "cpu"),
    ],
)
def test_the_device_is_found_by_every_name_that_lightning_takes(
    monkeypatch, accelerator, there, expected
) -> None:
    found = None if there is None else torch.device(there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    assert trainers.device_type_of(accelerator) == expected


@pytest.mark.parametrize("units", [True, False])
def test_bf16_is_warned_of_where_the_processor_has_no_units_for_it(monkeypatch, units) -> None:
    monkeypatch.setattr(trainers, "has_bf16_units", lambda device: units)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainers.Trainer(precision="bf16-mixed", **quiet)
        trainers.Trainer(precision="32-true", **quiet)
    assert trainer.precision == "bf16-mixed"
    told = [str(warning.message) for warning in caught if "no units for bf16" in str(warning.message)]
    assert len(told) == (not units) and all("give auto" in words for words in told)


def test_a_package_that_is_not_found_says_how_it_would_be(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA2_PL_ALLOW_IMPORTS", "users_package,nowhere_package")
    message = refused(["fit", "-c", config, "--model", "nowhere_package.Mine"], capsys)
    assert "Install nowhere_package" in message and "PYTHONPATH=." in message


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("fitt", "fit"),
        ("tokenizer", "tokenizer train"),
        ("data", "data default, data pairs, data clean, data audit"),
    ],
)
def test_a_word_that_is_no_command_names_those_that_were_meant(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {meant}?" in refused([word], capsys)


def test_preview_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for file, limit, problem in (
        (tmp_path, 3, "is a folder"),
        (empty, 3, "no dialogue"),
        (empty, -1, "limit is -1"),
    ):
        with pytest.raises(ValueError, match=problem):
            preview(str(file), "unread", limit)


def test_tokenizer_train_takes_one_file() -> None:
    options = parse_tool("tokenizer train", ["--files", "one.txt", "--out", "o"])
    assert options["files"] == "one.txt"
