"""TRL's side: PPOTrainer on random prompts, with answers that never end."""

from __future__ import annotations

import os
import tempfile

import torch

from benchmarks.sides.protocol import Turns, serve

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true", "TRL_EXPERIMENTAL_SILENCE": "1"}


def tokenizer(vocabulary: int):
    """Words t0, t1, ... up to the padding and the EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocabulary - 2)} | {"<eos>": vocabulary - 2, "<pad>": vocabulary - 1}
    fast = Tokenizer(models.WordLevel(words, unk_token="t0"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "t0"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, padding_side="left", **marks)


def networks(shape: dict) -> dict:
    """Policy, its frozen copy, reward and value, all of one size."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    size = {
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["dim"],
        "num_hidden_layers": shape["n_layers"],
        "num_attention_heads": shape["n_heads"],
        "num_key_value_heads": shape["kv_heads"],
        "intermediate_size": shape["ffn_hidden"],
        "max_position_embeddings": shape["max_seq_len"],
        "pad_token_id": shape["vocab_size"] - 1,
        "eos_token_id": shape["vocab_size"] - 2,
        "bos_token_id": 1,
    }
    policy, reference = LlamaForCausalLM(LlamaConfig(**size)), LlamaForCausalLM(LlamaConfig(**size))
    reference.load_state_dict(policy.state_dict())
    reward, value = (LlamaForSequenceClassification(LlamaConfig(**size, num_labels=1)) for _ in range(2))
    return {"model": policy, "ref_model": reference, "reward_model": reward, "value_model": value}


def ppo(options: dict, turns: Turns) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import PPOConfig, PPOTrainer

    class Turn(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            turns.done(options["rows"])

    shape, rows = options["model"], options["rows"]
    prompts = torch.randint(3, shape["vocab_size"] - 2, (4 * rows, options["length"])).tolist()
    data = Dataset.from_dict({"input_ids": prompts})
    # One optimizer step per minibatch, as ours: with gradient_accumulation_steps TRL makes one per epoch.
    recipe = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_mini_batches=rows // options["minibatch"],
        num_ppo_epochs=options["epochs"],
        total_episodes=1000 * rows,
        response_length=options["new"],
        local_rollout_forward_batch_size=rows,
        temperature=1.0,
        learning_rate=1e-6,
        stop_token=None,
        bf16=options["precision"] == "bf16-mixed",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        num_sample_generations=0,
        logging_steps=10**6,
    )
    PPOTrainer(
        args=recipe,
        processing_class=tokenizer(shape["vocab_size"]),
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        callbacks=[Turn()],
        **networks(shape),
    ).train()


if __name__ == "__main__":
    serve({"ppo": ppo})
