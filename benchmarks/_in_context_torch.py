"""The PyTorch step that softmax attention is compared with; run by its own interpreter.

Multi-head softmax attention on linear regression, as users of PyTorch write it: one module per
head, data drawn in the loop, Adam. Reads numbers of steps from standard input, one per line, and
answers each with the CPU seconds that they took. Usage: python _in_context_torch.py HEADS
"""

import sys
import time

import torch

DIM, CONTEXT, BATCH, NOISE = 5, 40, 256, 0.1**0.5


class Head(torch.nn.Module):
    """One head: attention of the query over the context, read by one number."""

    def __init__(self):
        super().__init__()
        size = DIM + 1
        self.query = torch.nn.Linear(size, size, bias=False)
        self.key = torch.nn.Linear(size, size, bias=False)
        self.value = torch.nn.Linear(size, size, bias=False)
        self.output = torch.nn.Linear(size, 1, bias=False)

    def forward(self, context, asked):
        """context [batch, n, d + 1], asked [batch, 1, d + 1] -> [batch]."""
        scores = self.query(asked) @ self.key(context).transpose(1, 2) / (DIM + 1) ** 0.5
        return self.output(torch.softmax(scores, dim=-1) @ self.value(context))[:, 0, 0]


def draw():
    """A batch of prompts."""
    weights = torch.randn(BATCH, DIM, 1) / DIM**0.5
    x = torch.randn(BATCH, CONTEXT + 1, DIM)
    y = x @ weights + NOISE * torch.randn(BATCH, CONTEXT + 1, 1)
    context = torch.cat([x[:, :-1], y[:, :-1]], dim=2)
    asked = torch.cat([x[:, -1:], torch.zeros(BATCH, 1, 1)], dim=2)
    return context, asked, y[:, -1, 0]


def main():
    """Serves requests until standard input ends."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = torch.nn.ModuleList(Head() for _ in range(int(sys.argv[1])))
    optimizer = torch.optim.Adam(heads.parameters(), lr=3e-3)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            context, asked, target = draw()
            optimizer.zero_grad()
            answer = sum(head(context, asked) for head in heads)
            loss = torch.mean((answer - target) ** 2)
            loss.backward()
            optimizer.step()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
