"""The official training step of in-context linear regression in PyTorch: data, forward, backward by autograd, Adam.

The peer of tests/benchmarks/test_icl_speed.py, written as one would write it in PyTorch.
"""

import torch
from torch import nn


class Attention(nn.Module):
    """A question attends to the examples: heads as wide as a token, no biases, one output."""

    def __init__(self, width, n_head):
        super().__init__()
        self.n_head = n_head
        self.q = nn.Linear(width, n_head * width, bias=False)
        self.k = nn.Linear(width, n_head * width, bias=False)
        self.v = nn.Linear(width, n_head * width, bias=False)
        self.o = nn.Linear(n_head * width, 1, bias=False)

    def forward(self, z_q, z):
        """Return the prediction, (B, 1, 1)."""
        q, k, v = (self.split(linear(a)) for linear, a in ((self.q, z_q), (self.k, z), (self.v, z)))
        attn = torch.softmax(q @ k.transpose(-2, -1) / z.shape[-1] ** 0.5, dim=-1)
        return self.o((attn @ v).transpose(1, 2).flatten(2))

    def split(self, a):
        """Return (B, H, L, D)."""
        return a.unflatten(-1, (self.n_head, -1)).transpose(1, 2)


def draw(batch, length, dim, noise_var):
    """Return questions, examples and answers of fresh prompts."""
    x, x_q = torch.randn(batch, length, dim), torch.randn(batch, 1, dim)
    beta = torch.randn(batch, dim, 1) / dim**0.5
    y = x @ beta + noise_var**0.5 * torch.randn(batch, length, 1)
    y_q = x_q @ beta + noise_var**0.5 * torch.randn(batch, 1, 1)
    return torch.cat([x_q, torch.zeros(batch, 1, 1)], -1), torch.cat([x, y], -1), y_q


def official_step(batch, length, dim, n_head, noise_var=0.1, lr=1e-3):
    """Return a function that does one step of training in float32 on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Attention(dim + 1, n_head)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step():
        z_q, z, y_q = draw(batch, length, dim, noise_var)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(z_q, z), y_q)
        loss.backward()
        optimizer.step()
        return loss

    return step
