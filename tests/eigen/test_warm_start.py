"""What the eigenvectors of the previous monitored step save, while a small GPT trains."""

from __future__ import annotations

import torch

from lightning_vivit import Problem, evaluate
from lightning_vivit.demo import CharacterGPT, ManualTextDataModule


def test_consecutive_monitored_steps_need_at_most_60_percent_of_the_products():
    torch.manual_seed(0)
    data = ManualTextDataModule(batch_size=8, window=16)
    data.setup()
    module = CharacterGPT(width=32, depth=1, heads=2, context=16)
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()
    batches = iter(data.train_dataloader())
    probe = next(batches)
    cold, warm, start = 0, 0, None
    for step in range(46):
        if step >= 40:
            problem = Problem.from_training_step(module, probe)
            fresh = evaluate(problem, method="matrix_free", k=5, tol=1e-2)
            values = fresh.eigenvalues()
            if start is not None:
                found = evaluate(problem, method="matrix_free", k=5, tol=1e-2, start=start)
                torch.testing.assert_close(found.eigenvalues(), values, rtol=2e-2, atol=0)
                cold, warm = cold + fresh.products, warm + found.products
            start = fresh.warm_start()
        loss = module.training_step(next(batches), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert warm <= 0.6 * cold
