"""Ask a checkpoint with plain transformers; imports none of our code.

usage: plain_transformers.py CHECKPOINT QUESTIONS.json [TEXT.gz]
Reads ``[{"prompt": ..., "expected": ...}, ...]`` and prints ``{"correct": [...], "perplexity": ...}``.
"""

import gzip
import json
import math
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint, questions = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
correct = []
with torch.no_grad():
    for start in range(0, len(questions), 32):
        batch = questions[start : start + 32]
        inputs = tokenizer([q["prompt"] for q in batch], return_tensors="pt", padding=True)
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for question, text in zip(batch, texts, strict=True):
            text, label = text.strip(), question["expected"]
            # The label, and then anything but the rest of a longer word or name.
            goes_on = re.match(r"\w|[-']\w|\s+[A-Z0-9]", text[len(label) :])
            correct.append(text.startswith(label) and goes_on is None)
    perplexity = None
    if len(sys.argv) > 3:
        text = gzip.decompress(Path(sys.argv[3]).read_bytes()).decode()[:60_000]
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        windows = ids[: len(ids) // 256 * 256].view(-1, 256)
        losses = [float(model(w[None], labels=w[None]).loss) for w in windows]
        perplexity = math.exp(sum(losses) / len(losses))
print(json.dumps({"correct": correct, "perplexity": perplexity}))
