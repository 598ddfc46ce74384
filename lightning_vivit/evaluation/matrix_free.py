"""Leading eigenpairs, directions and trace of a problem, without a Gram matrix.

A `MatrixFreeEvaluation` answers the questions that the monitors ask an `Evaluation`, as far as
the k leading eigenpairs go. Choose it where samples times outputs are too many for a Gram matrix:
a thousand classes, language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_vivit.eigen.lanczos import Eigenpairs
from lightning_vivit.eigen.start import Start
from lightning_vivit.eigen.symmetric import numerical_floor
from lightning_vivit.eigen.trace import TraceEstimate
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.derivatives import Damping, Directions
from lightning_vivit.evaluation.interface import Facts, Question, Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.matrixfree.products import Products
from lightning_vivit.matrixfree.search import GroupSearch
from lightning_vivit.problem.groups import require_group
from lightning_vivit.problem.problem import Problem

_TRACE_SAMPLES = 6  # random vectors for a trace


class MatrixFreeEvaluation(Result):
    """The k leading eigenpairs of one problem, and what follows from them.

    Attributes and questions are those of `Result`; targets are at hand if there is one microbatch.

    Attributes:
        matrix: Whose eigenpairs.
    """

    def __init__(
        self,
        problem: Problem,
        groups: Mapping[str, list[str]],
        request: Request,
        *,
        which: str = "largest",
        max_products: int | None = None,
    ) -> None:
        """Prepare the products; eigenpairs are computed when they are asked for.

        Args:
            problem: What is differentiated; it needs a loss.
            groups: Group name -> parameter names.
            request: Whose eigenpairs, how many and how exact; more can be asked for later, at a
                further cost.
            which: ``largest`` (algebraic) or ``magnitude`` eigenvalues.
            max_products: Upper limit of products for each group; None for 20 k + 100.

        Raises:
            OptionError: No loss, or an impossible option.
            ProblemError: The problem is not supported.
            InteractionError: Samples influence each other.
        """
        names = [name for members in groups.values() for name in members]
        self.matrix, self._k = request.chosen_matrix, request.k
        self._products = Products(
            problem,
            names,
            self.matrix,
            microbatch=request.microbatch,
            max_memory=request.max_memory,
        )
        warm = request.start or {}
        self._searches = {
            group: GroupSearch(
                self._products,
                self._products.space(own),
                group,
                request.k,
                request.tol,
                which,
                warm.get(group),
                max_products,
            )
            for group, own in groups.items()
        }
        self._traces: dict[str, TraceEstimate] = {}
        self._gradients: dict[str, Tensor] = {}
        batches = self._products.batches
        self._scale = batches.scale
        facts = Facts(
            groups=groups,
            num_samples=self._products.num_samples,
            outputs=batches.outputs,
            targets=batches.targets,
            ignore_index=batches.ignore_index,
            loss=batches.value,
            scale=batches.scale,
            unused=self._products.unused(),
            layout=batches.layout,
        )
        super().__init__(facts)

    def refusal(self, question: Question) -> str | None:
        """Why a question is not answered, and what to do; None if it is."""
        if question in ("directions", "newton_step") and not self.matrix.has_directions:
            return self.matrix.no_directions
        if question == "ntk":
            return (
                "A matrix-free evaluation has no NTK. Evaluate with kernel=True or method='gram', "
                "and with fewer samples or outputs if that does not fit into memory."
            )
        return None

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can differ from zero: samples times columns."""
        return self.num_samples * self.matrix.columns(self._products.depth)

    @property
    def products(self) -> int:
        """Products so far, each 1 to 1.5 training steps (with the Hessian 1.5 to 2.5)."""
        spent = [search.halves for search in self._searches.values()]
        return -(-(self._products.halves + sum(spent)) // 2)

    def eigenpairs(self, group: str = "all", k: int | None = None) -> Eigenpairs:
        """The leading eigenpairs of a group with their residuals.

        Args:
            group: Parameter group.
            k: How many; None for the number given at the start.

        Returns:
            At least k pairs. A warning is given if they did not converge.

        Raises:
            OptionError: Unknown group, or k below 1 or above the number of parameters.
        """
        if k is not None and k < 1:
            raise OptionError(f"Got k={k} directions. Choose k >= 1.")
        return self._search(group).pairs(k)

    def eigenvalues(
        self,
        group: str = "all",
        samples: Sequence[int] | None = None,
        k: int | None = None,
    ) -> Tensor:
        """The k leading eigenvalues, [k] ascending, float64; k as `directions` takes it.

        Raises:
            OptionError: A subset of the samples, which this method does not have; or k above the
                number of parameters or below 1.
        """
        _refuse_subset(samples)
        values = self.eigenpairs(group, k).values
        return values if k is None else values[-k:]

    def rank(self, group: str = "all") -> int:
        """How many of the k leading eigenvalues are above rounding."""
        values = self.eigenvalues(group)
        return int((values > numerical_floor(values, self._products.dtype)).sum())

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors: parameter name -> [K, *shape], ascending, norm 1.

        Raises:
            OptionError: k is out of range, or a subset of the samples.
        """
        _refuse_subset(samples)
        pairs = self.eigenpairs(group, k)
        count = self._k if k is None else k
        return self._search(group).space.split(pairs.vectors[-count:])

    def directions(
        self,
        group: str = "all",
        k: int | None = None,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> Directions:
        """Slopes and curvatures of all samples; see `Result.directions`.

        Costs k Jacobian-vector products; nothing where the search went among vectors over samples
        and outputs, which has them already.
        """
        _refuse_subset(grad_samples)
        _refuse_subset(ggn_samples)
        if not self.knows("directions"):
            raise self._refused("directions")
        pairs = self.eigenpairs(group, k)
        count = min(self._k if k is None else k, pairs.values.numel())
        values = pairs.values[-count:]
        search = self._search(group)
        if search.pushed is not None:
            slopes, curvatures = self._products.along(search.pushed[..., -count:])
        else:
            slopes, curvatures = self._products.derivatives(search.space, pairs.vectors[-count:])
        known = values > numerical_floor(values, self._products.dtype)
        gammas = torch.where(known, slopes, torch.nan)
        return Directions(values, gammas, curvatures, self._scale, self._scale)

    def newton_step(
        self,
        group: str = "all",
        k: int | None = None,
        damping: Damping = 0.0,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Damped Newton step of all samples; see `Result.newton_step`."""
        found = self.directions(group, k, grad_samples=grad_samples, ggn_samples=ggn_samples)
        coefficients = found.newton_coefficients(damping).to(self._products.dtype)
        vectors = self.eigenpairs(group, k).vectors[-coefficients.numel() :]
        step = self._search(group).space.split((coefficients @ vectors).unsqueeze(0))
        return {name: part[0] for name, part in step.items()}

    def trace(self, group: str = "all") -> TraceEstimate:
        """Trace of the matrix with its standard error, by Hutch++ on the solver's basis.

        Costs 6 Jacobian-vector products (full products for the Hessian).
        """
        if group not in self._traces:
            self._traces[group] = self._search(group).trace(_TRACE_SAMPLES)
        return self._traces[group]

    def gradient_norm_squared(self, group: str = "all") -> Tensor:
        """Squared norm of the loss's gradient with respect to the group, scalar."""
        if group not in self._gradients:
            gradient = self._products.gradient(self._search(group).space)
            self._gradients[group] = gradient.square().sum(dtype=torch.float64)
        return self._gradients[group]

    def gradient(self, group: str = "all") -> dict[str, Tensor]:
        """Gradient of the loss, parameter name -> [*shape]; costs one backward pass."""
        space = self._search(group).space
        parts = space.split(self._products.gradient(space).reshape(1, -1))
        return {name: part[0] for name, part in parts.items()}

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients, [N]; costs a backward pass for each sample."""
        return self._products.sample_gradient_norms(self._search(group).space)

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        mean = self.gradient_norm_squared(group) / (self._scale * self.num_samples) ** 2
        return (self.gradient_norms(group).square().mean() - mean).clamp(min=0.0)

    def warm_start(self) -> dict[str, Start]:
        """What the evaluation of the next monitored step can start from."""
        return {
            group: Start(search.found.values.detach(), search.found.vectors.detach())
            for group, search in self._searches.items()
            if search.found is not None
        }

    def explain(self) -> str:
        """Products, residuals and what they say of each group."""
        lines = [f"{'group':<12} {'k':>4} {'products':>9} {'largest residual':>17} converged"]
        for group, search in self._searches.items():
            if (pairs := search.found) is None:
                continue
            lines.append(
                f"{group:<12} {pairs.values.numel():>4} {pairs.products:>9} "
                f"{float(pairs.residuals.max()):>17.1e} {'yes' if pairs.converged else 'no'}"
            )
        return "\n".join(lines)

    def _search(self, group: str) -> GroupSearch:
        require_group(group, self._searches)
        return self._searches[group]


def _refuse_subset(samples: Sequence[int] | None) -> None:
    if samples is not None:
        raise OptionError(
            "A matrix-free evaluation is one of all samples. Evaluate the subset as a problem of "
            "its own, or use method='gram'."
        )
