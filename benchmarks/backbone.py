"""Training speed of the small backbone, variant by variant: `python benchmarks/backbone.py [--threads 2]`.

On short sequences the fused attention kernel and the compiler are slower than plain attention; the softmax
over the whole vocabulary costs more than the network. Prints one CSV line per variant: sequences per second,
forward, backward and optimiser step, on random inputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from tutorial_lib.modeling import END, PAD, START, fast_dtype, small_backbone

ENCODER, DECODER = 22, 9  # positions: a corrector's pseudo-tokens and guess; eight pieces and the end mark
VOCABULARY = 17_893  # word pieces that occur in the training text


def backbone(layers: tuple[int, int], attention: str) -> T5ForConditionalGeneration:
    """A fresh encoder-decoder of `layers` encoder and decoder layers with the named attention kernel."""
    fields = small_backbone(VOCABULARY) | {"num_layers": layers[0], "num_decoder_layers": layers[1]}
    config = T5Config(
        **fields, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=START, use_cache=False
    )
    config._attn_implementation = attention
    return T5ForConditionalGeneration(config).train()


def speed(
    layers: tuple[int, int],
    attention: str,
    *,
    encoder: int,
    head: str = "",
    compiled: bool = False,
    batch: int,
    steps: int,
) -> float:
    """Sequences per second. head: "" (none: the network alone) or "full" (softmax over the vocabulary)."""
    torch.manual_seed(0)
    model = backbone(layers, attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = torch.randn(batch, encoder, model.config.d_model)
    labels = torch.randint(START + 3, VOCABULARY, (batch, DECODER))

    def loss() -> Tensor:
        if head == "full":
            return model(inputs_embeds=inputs, labels=labels).loss
        encoded = model.encoder(inputs_embeds=inputs).last_hidden_state
        hidden = model.decoder(input_ids=labels, encoder_hidden_states=encoded).last_hidden_state
        return hidden.float().square().mean()

    run: Callable[[], Tensor] = torch.compile(loss) if compiled else loss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype(torch.device("cpu")) == torch.bfloat16):
            value = run()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()  # the compiler works during the first two
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return batch * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--batch", type=int, default=256, help="sequences per step (default 256)")
    parser.add_argument("--steps", type=int, default=4, help="steps timed after two to warm up (default 4)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    variants: dict[str, dict[str, Any]] = {
        "attention fused": {"layers": (3, 3), "attention": "sdpa", "encoder": ENCODER},
        "attention plain": {"layers": (3, 3), "attention": "eager", "encoder": ENCODER},
        "attention plain, compiled": {
            "layers": (3, 3),
            "attention": "eager",
            "encoder": ENCODER,
            "compiled": True,
        },
        "no softmax": {"layers": (2, 4), "attention": "sdpa", "encoder": 8},
        "full softmax": {"layers": (2, 4), "attention": "sdpa", "encoder": 8, "head": "full"},
    }
    print("variant,sequences per second")
    for name, variant in variants.items():
        print(f"{name},{speed(**variant, batch=given.batch, steps=given.steps):.0f}", flush=True)


if __name__ == "__main__":
    main()
