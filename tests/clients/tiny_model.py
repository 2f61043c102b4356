"""A tiny language model of random weights, written to a folder: runs inside the engine's own environment.

Rule 1: nothing is fetched: the vocabulary is learnt from the text below, the weights are drawn from a fixed seed.
Rule 2: a taught model has seen a few conversations until it knows them by heart, so that it calls a tool when it is
        offered one and says something when it has the answer; of anything else it knows nothing.

    python tests/clients/tiny_model.py FOLDER [--taught]

Shape: Qwen3, two layers of width 64, some 500 tokens; the layout is that of the transformers library.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_words import ANSWER, NO_TOOL_ANSWER, QUESTION, SECOND_ANSWER, SECOND_QUESTION, THINK, THOUGHT, TOOL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 20260
CONTEXT = 2048
VOCABULARY = 512
END = "<|im_end|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call:{% for tool in tools %} {{ tool.function.name }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}
{%- for tool_call in (message.tool_calls or []) | map(attribute="function") %}<tool_call>
{"name": "{{ tool_call.name }}", "arguments": \
{{ tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LOSS_MAX = 0.02
STEPS_MAX = 600


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary that knows the words of the conversations and every byte."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator((str(talk) for talk in conversations()), trainer)
    bare.add_tokens(list(MARKS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token=END,
        pad_token=SPECIAL[0],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def conversations() -> list[dict[str, Any]]:
    """What a taught model knows: messages, tools and the answer."""
    tools = [{"type": "function", "function": {"name": TOOL}}]
    call = {"name": TOOL, "arguments": {"city": "Paris"}}
    called = f'<tool_call>\n{{"name": "{TOOL}", "arguments": {{"city": "Paris"}}}}\n</tool_call>'
    thinking = [{"role": "system", "content": THINK}, {"role": "user", "content": QUESTION}]
    thought = f"<think>{THOUGHT}</think>{NO_TOOL_ANSWER}"
    talks: list[dict[str, Any]] = [{"messages": thinking, "tools": None, "answer": thought}]
    for instructions in (None, "Be brief."):
        system = [{"role": "system", "content": instructions}] if instructions else []
        asked = [*system, {"role": "user", "content": QUESTION}]
        told = [{"role": "assistant", "tool_calls": [{"function": call}]}, {"role": "tool", "content": "sunny"}]
        said = [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND_QUESTION}]
        talks += [
            {"messages": asked, "tools": tools, "answer": called},
            {"messages": [*asked, *told], "tools": tools, "answer": ANSWER},
            {"messages": asked, "tools": None, "answer": NO_TOOL_ANSWER},
            {"messages": [*asked, *told, *said], "tools": tools, "answer": SECOND_ANSWER},
            {"messages": [*asked, *told, *said], "tools": None, "answer": SECOND_ANSWER},
        ]
    return talks


def make_model(tokenizer: PreTrainedTokenizerFast, *, samples: bool) -> Qwen3ForCausalLM:
    """The model, with weights as they were drawn; one that does not sample says the likeliest."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=samples
    )
    return model


def teach(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> tuple[int, float]:
    """Repeat the conversations until the answers are known by heart: the rounds that it took, and the last loss."""
    lessons = [_lesson(tokenizer, **talk) for talk in conversations()]
    longest = max(len(tokens) for tokens, _ in lessons)
    tokens = torch.tensor([known + [tokenizer.pad_token_id] * (longest - len(known)) for known, _ in lessons])
    labels = torch.tensor([wanted + [-100] * (longest - len(wanted)) for _, wanted in lessons])
    attention = torch.tensor([[1] * len(known) + [0] * (longest - len(known)) for known, _ in lessons])
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    order = random.Random(SEED)
    loss = float("inf")
    for step in range(STEPS_MAX):
        chosen = order.sample(range(len(lessons)), 5)
        output = model(input_ids=tokens[chosen], attention_mask=attention[chosen], labels=labels[chosen])
        output.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss = 0.9 * loss + 0.1 * output.loss.item() if step else output.loss.item()
        if loss < LOSS_MAX:
            break
    return step + 1, loss


def _lesson(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, answer: str
) -> tuple[list[int], list[int]]:
    """The tokens of one conversation, and the ones to learn: those of its answer."""
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer + END, add_special_tokens=False)["input_ids"]
    return before + after, [-100] * len(before) + after


def main() -> None:
    """Write the model to the folder that was named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--taught", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, samples=not options.taught)
    told = ""
    if options.taught:
        steps, loss = teach(model, tokenizer)
        told = f", taught in {steps} steps (loss {loss:.3f})"
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    size = sum(weights.numel() for weights in model.parameters())
    sys.stdout.write(
        f"{options.folder.name}: {size} weights, {len(tokenizer)} tokens{told}, {time.monotonic() - began:.0f} s\n"
    )


if __name__ == "__main__":
    main()
