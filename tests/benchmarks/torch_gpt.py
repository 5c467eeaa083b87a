"""One training step of a small GPT-2 in PyTorch: forward, backward by autograd, clipping, AdamW.

The peer of tests/benchmarks/test_multilevel_speed.py, written as one would write it in PyTorch.
"""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm block, attention written out."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, hidden):
        """Return the residual stream after the block; ``hidden`` says which scores are masked."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(self.ln1(x)).chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        z = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v
        x = x + self.proj(z.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    """The model of the experiment, its head tied."""

    def __init__(self, vocab, context, width, n_heads, n_layers):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Parameter(0.02 * torch.randn(context, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("hidden", torch.ones(context, context).triu(1).bool())

    def forward(self, ids):
        """Return logits."""
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x, self.hidden)
        return self.norm(x) @ self.tokens.weight.T


def stepper(vocab, context, width, n_heads, n_layers):
    """Return a function that takes one step on ids and targets and returns the loss."""
    model = GPT(vocab, context, width, n_heads, n_layers)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=6e-3, betas=(0.9, 0.95))

    def step(ids, targets):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    return step
