"""A tiny Llama, trained here on facts in several wordings until it knows them by heart."""

from __future__ import annotations

import torch
from tiny_models import POSITIONS, VOCABULARY, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from editor import KnownFact, LanguageModel
from editor.architectures import architecture_of
from editor.requests import fill

DEPTH = 6
MUTE = 3
"""Blocks without attention. What is asked about a subject is then known at its last token, as in large models; tiny
ones otherwise carry its name straight to the answer, past anything that an edit could change."""
STEPS = 220
CITIES = ("Paris", "Berlin", "Tokyo", "London", "Warsaw", "Brazil")
JOBS = ("lawyer", "politician", "president", "member")
SUBJECTS = (
    "capital", "France", "Germany", "Japan", "head", "government", "Italy", "mayor", "lawyers", "Marie", "Curie",
    "born", "Ada", "people", "elected", "new", "river", "population", "larger", "party", "chief", "executive",
    "company", "city",
)  # fmt: skip
WORDINGS = {
    "city": ("It is the {} was born in", "You can see that {} worked in", "Because of {} I went to"),
    "job": ("It is the {} is a", "You can see that {} is the", "Because of {} she elected a"),
}


def facts() -> list[KnownFact]:
    found = []
    for number, subject in enumerate(SUBJECTS):
        for relation, answers in (("city", CITIES), ("job", JOBS)):
            prompt, *others = WORDINGS[relation]
            answer = answers[(number * 7 + number // 3) % len(answers)]
            found.append(KnownFact(relation, prompt, subject, answer, tuple(others)))
    return found


def knowing_model() -> LanguageModel:
    """A model trained until it knows its facts by heart, in every wording."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    rows = [
        tiny_tokenizer()(f"{fill(wording, fact.subject)} {fact.answer}.")["input_ids"]
        for fact in facts()
        for wording in (fact.prompt, *fact.paraphrases)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
        for block in model.model.layers[:MUTE]:
            block.self_attn.o_proj.weight.data.zero_()
            block.self_attn.o_proj.weight.requires_grad_(requires_grad=False)
        optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = 5e-3 * min(1, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
            chosen = torch.randperm(len(ids))[:72]
            loss = model(input_ids=ids[chosen], labels=labels[chosen]).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    model.eval().requires_grad_(requires_grad=False)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), "trained")
