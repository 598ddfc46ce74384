"""Directional derivatives along GGN eigenvectors under BackPACK, checked with autograd."""

from backpack import backpack, extend
from backpack.utils.examples import _autograd_ggn_exact_columns
from torch import Tensor, einsum, isclose, linalg, manual_seed, rand, stack, zeros
from torch.autograd import grad
from torch.nn import Linear, MSELoss, ReLU, Sequential
from torch.nn.utils.convert_parameters import parameters_to_vector

from lightning_vivit.optim.directional_derivatives import DirectionalDerivativesComputation

manual_seed(0)
N, D_in, D_hidden, D_out = 4, 7, 5, 3
X, y = rand(N, D_in), rand(N, D_out)

model = Sequential(
    Linear(D_in, D_hidden),
    ReLU(),
    Linear(D_hidden, D_hidden),
    ReLU(),
    Linear(D_hidden, D_out),
)
loss_function = MSELoss(reduction="mean")

model = extend(model)
loss_function = extend(loss_function)
loss = loss_function(model(X), y)

computation = DirectionalDerivativesComputation()


def select_top_k(evals: Tensor, k: int = 4) -> list[int]:
    return [evals.numel() - k + idx for idx in range(k)]


group = {
    "params": [p for p in model.parameters() if p.requires_grad],
    "criterion": select_top_k,
}
param_groups = [group]

extensions = computation.get_extensions()
extension_hook = computation.get_extension_hook(param_groups)

with backpack(*extensions, extension_hook=extension_hook):
    loss.backward()

gammas_vivit, lambdas_vivit = computation.get_result(group)

batch_grad = []
batch_ggn = []
for n in range(N):
    x_n, y_n = X[[n]], y[[n]]
    grad_n = grad(
        loss_function(model(x_n), y_n),
        [p for p in model.parameters() if p.requires_grad],
    )
    batch_grad.append(parameters_to_vector(grad_n))
    columns = _autograd_ggn_exact_columns(x_n, y_n, model, loss_function)
    batch_ggn.append(stack([col for _, col in columns]))

ggn = stack([col for _, col in _autograd_ggn_exact_columns(X, y, model, loss_function)])
evals, evecs = linalg.eigh(ggn)
keep = select_top_k(evals)
evals, evecs = evals[keep], evecs[:, keep]

K = evals.numel()
gammas_torch = zeros(N, K)
for n in range(N):
    for k in range(K):
        gammas_torch[n, k] = einsum("i,i", batch_grad[n], evecs[:, k])

for gamma_vivit, gamma_torch in zip(gammas_vivit.flatten(), gammas_torch.flatten(), strict=True):
    close = isclose(abs(gamma_vivit), abs(gamma_torch), rtol=1e-4, atol=1e-7)
    print(f"{gamma_vivit:.5e} vs. {gamma_torch:.5e}, close: {close}")
    if not close:
        raise ValueError("First-order directional derivatives don't match!")
print("First-order directional derivatives match!")

lambdas_torch = zeros(N, K)
for n in range(N):
    for k in range(K):
        e_k = evecs[:, k]
        lambdas_torch[n, k] = einsum("i,ij,j", e_k, batch_ggn[n], e_k)

for lambda_vivit, lambda_torch in zip(
    lambdas_vivit.flatten(), lambdas_torch.flatten(), strict=True
):
    close = isclose(lambda_vivit, lambda_torch, rtol=1e-4, atol=1e-7)
    print(f"{lambda_vivit:.5e} vs. {lambda_torch:.5e}, close: {close}")
    if not close:
        raise ValueError("Second-order directional derivatives don't match!")
print("Second-order directional derivatives match!")

for eval_vivit, eval_torch in zip(lambdas_vivit.mean(0), evals, strict=True):
    close = isclose(eval_vivit, eval_torch, rtol=1e-4, atol=1e-7)
    print(f"{eval_vivit:.5e} vs. {eval_torch:.5e}, close: {close}")
    if not close:
        raise ValueError("Averaged second-order derivatives don't match eigenvalues!")
print("Averaged second-order directional derivatives match eigenvalues!")
