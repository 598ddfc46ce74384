"""Empirical NTK under BackPACK with `ViViTGGNExact`, against torch.func's two methods."""

import time

from backpack import backpack, extend
from torch import allclose, cat, einsum, eye, manual_seed, randn, stack, zeros_like
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn import Conv2d, Flatten, Linear, MSELoss, ReLU, Sequential

from lightning_vivit.backpack.vivit import ViViTGGNExact

manual_seed(0)


def CNN():
    return Sequential(
        Conv2d(3, 32, (3, 3)),
        ReLU(),
        Conv2d(32, 32, (3, 3)),
        ReLU(),
        Conv2d(32, 32, (3, 3)),
        Flatten(),
        Linear(21632, 10),
    )


x_train = randn(20, 3, 32, 32)
x_test = randn(5, 3, 32, 32)
net = CNN()
params = {name: p.detach() for name, p in net.named_parameters()}


def fnet_single(params, x):
    return functional_call(net, params, (x.unsqueeze(0),)).squeeze(0)


def empirical_ntk_functorch(fnet_single, params, x1, x2):
    jac1 = vmap(jacrev(fnet_single), (None, 0))(params, x1)
    jac1 = [j.flatten(2) for j in jac1.values()]
    jac2 = vmap(jacrev(fnet_single), (None, 0))(params, x2)
    jac2 = [j.flatten(2) for j in jac2.values()]
    pairs = zip(jac1, jac2, strict=True)
    return stack([einsum("Naf,Mbf->NMab", j1, j2) for j1, j2 in pairs]).sum(0)


def empirical_ntk_implicit_functorch(func, params, x1, x2):
    def get_ntk(x1, x2):
        def func_x1(params):
            return func(params, x1)

        def func_x2(params):
            return func(params, x2)

        output, vjp_fn = vjp(func_x1, params)

        def get_ntk_slice(vec):
            vjps = vjp_fn(vec)
            _, jvps = jvp(func_x2, (params,), vjps)
            return jvps

        basis = eye(output.numel(), dtype=output.dtype).view(output.numel(), -1)
        return vmap(get_ntk_slice)(basis)

    return vmap(vmap(get_ntk, (None, 0)), (0, None))(x1, x2)


class AccumulateGramHook:
    """Accumulate the Gram matrix during backpropagation with BackPACK."""

    def __init__(self, delete_buffers):
        self.gram = None
        self.delete_buffers = delete_buffers

    def __call__(self, module):
        for p in module.parameters():
            gram_p = p.vivit_ggn_exact["gram_mat"]()
            self.gram = gram_p if self.gram is None else self.gram + gram_p
            if self.delete_buffers:
                del p.vivit_ggn_exact


def empirical_ntk_vivit(net, x1, x2, delete_buffers=True):
    N1 = x1.shape[0]
    X = cat([x1, x2])
    net = extend(net)
    loss_func = extend(MSELoss(reduction="sum"))
    hook = AccumulateGramHook(delete_buffers)
    with backpack(ViViTGGNExact(), extension_hook=hook):
        output = net(X)
        y = zeros_like(output)
        loss = loss_func(output, y)
        loss.backward()
    gram_reordered = einsum("cndm->nmcd", hook.gram)
    return 0.5 * gram_reordered[:N1, N1:]


ntk_functorch = empirical_ntk_functorch(fnet_single, params, x_train, x_test)

t_functorch = time.time()
empirical_ntk_functorch(fnet_single, params, x_train, x_test)
t_functorch = time.time() - t_functorch

t_functorch_implicit = time.time()
empirical_ntk_implicit_functorch(fnet_single, params, x_train, x_test)
t_functorch_implicit = time.time() - t_functorch_implicit

ntk_vivit = empirical_ntk_vivit(net, x_train, x_test)
t_vivit = time.time()
empirical_ntk_vivit(net, x_train, x_test)
t_vivit = time.time() - t_vivit

close = allclose(ntk_functorch, ntk_vivit, atol=1e-6)
if not close:
    raise ValueError("NTK from functorch and vivit don't match!")
print("NTK from functorch and vivit match!")

t_min = min(t_functorch, t_functorch_implicit, t_vivit)
print(f"Time [s] functorch:          {t_functorch:.4f} (x{t_functorch / t_min:.2f})")
print(f"Time [s] vivit:              {t_vivit:.4f} (x{t_vivit / t_min:.2f})")
print(
    f"Time [s] functorch implicit: {t_functorch_implicit:.4f} (x{t_functorch_implicit / t_min:.2f})"
)
