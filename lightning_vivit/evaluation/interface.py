"""What can be asked of an evaluated problem, whatever way it was evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from lightning_vivit.eigen.start import Start
from lightning_vivit.eigen.trace import TraceEstimate
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.derivatives import Damping, Directions
from lightning_vivit.losses import SampleLoss
from lightning_vivit.parallel import Whole
from lightning_vivit.problem.problem import Recording
from lightning_vivit.samples.layout import SampleLayout

Question: TypeAlias = Literal[
    "eigenvalues",
    "rank",
    "trace",
    "eigenvectors",
    "directions",
    "newton_step",
    "gradient",
    "gradient_norm_squared",
    "gradient_norms",
    "gradient_variance",
    "ntk",
]
QUESTIONS: tuple[Question, ...] = get_args(Question)


@dataclass(frozen=True)
class Facts:
    """What is known of every evaluated problem; the attributes are those of `Result`.

    Attributes:
        layout: Of the targets' rows.
    """

    groups: Mapping[str, list[str]]
    num_samples: int
    outputs: Tensor
    targets: Any
    ignore_index: int
    loss: Tensor | None
    scale: float | None
    unused: Sequence[str]
    layout: SampleLayout

    @classmethod
    def of(
        cls,
        recording: Recording,
        layout: SampleLayout,
        groups: Mapping[str, list[str]],
        unused: Sequence[str],
        loss: SampleLoss | None = None,
        whole: Whole | None = None,
    ) -> Facts:
        """Read them off a recording.

        Args:
            recording: The forward pass.
            layout: Of its outputs.
            groups: Group name -> parameter names.
            unused: Parameters without influence.
            loss: Of all samples, if its scale is known.
            whole: All ranks' samples; what was recorded are this rank's.
        """
        call, value = recording.loss, recording.value
        outputs = layout.flatten(recording.outputs.detach()) if whole is None else whole.outputs
        if whole is not None:
            call, layout = whole.call, whole.layout
            if loss is not None and value is not None:
                value = (loss.scale * loss.value().sum()).to(value.dtype)
        return cls(
            groups=groups,
            num_samples=layout.num_samples,
            outputs=outputs,
            targets=None if call is None else call.target,
            ignore_index=-100 if call is None else int(call.options.get("ignore_index", -100)),
            loss=value,
            scale=None if loss is None else loss.scale,
            unused=unused,
            layout=layout,
        )


class Result(ABC):
    """Answers about one evaluated problem.

    Results differ in what they know. Each question is a method here, and raises the reason why it
    is not answered where a class has no answer; `knows` and `refusal` tell that before. All
    tensors are detached; eigenvalues are those of the matrix that the problem was evaluated for.

    Attributes:
        groups: Group name -> parameter names.
        num_samples: N.
        outputs: [N, D], detached.
        targets: The loss call's target as given; None without a loss, or if it is not at hand.
        ignore_index: Class index that the loss ignores.
        loss: Value of the loss as the user reduces it; None without a loss.
        scale: The loss is ``scale * sum_n l_n``; None if that was not needed.
        unused: Trainable parameters that do not influence the outputs.
        whole_spectrum: Whether `eigenvalues` are all that can differ from zero.
    """

    whole_spectrum = False

    def __init__(self, facts: Facts) -> None:
        """Keep what every result knows."""
        self.groups = {group: list(names) for group, names in facts.groups.items()}
        self.num_samples = facts.num_samples
        self.outputs = facts.outputs
        self.targets = facts.targets
        self.ignore_index = facts.ignore_index
        self.loss = facts.loss
        self.scale = facts.scale
        self.unused = list(facts.unused)
        self._layout = facts.layout

    @abstractmethod
    def refusal(self, question: Question) -> str | None:
        """Why a question is not answered, and what to do; None if it is."""

    @abstractmethod
    def explain(self) -> str:
        """What the evaluation cost, as a table."""

    def knows(self, question: Question) -> bool:
        """Whether a question is answered."""
        return self.refusal(question) is None

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can be asked for: samples times columns."""
        raise self._refused("directions")

    @property
    def products(self) -> int:
        """Matrix-vector products so far, each 1 to 2.5 training steps; 0 with a Gram matrix."""
        return 0

    def warm_start(self) -> dict[str, Start]:
        """What the evaluation of the next monitored step can start from: group -> eigenpairs."""
        return {}

    def sample_targets(self) -> Tensor | None:
        """The targets with one row per sample, [N, ...]; None if they are not a tensor of rows."""
        targets, count = self.targets, self.num_samples
        if not isinstance(targets, Tensor) or targets.ndim == 0 or targets.shape[0] % count:
            return None
        return targets if targets.shape[0] == count else self._layout.split(targets)

    def eigenvalues(
        self, group: str = "all", samples: Sequence[int] | None = None, k: int | None = None
    ) -> Tensor:
        """Eigenvalues of the matrix.

        Args:
            group: Parameter group.
            samples: Restrict the matrix to these samples of the batch; None for all.
            k: Only the k largest; None for all that are known.

        Returns:
            [K] ascending.

        Raises:
            OptionError: Unknown group, k out of range, or a refusal.
        """
        raise self._refused("eigenvalues")

    def rank(self, group: str = "all") -> int:
        """Number of known eigenvalues above rounding."""
        raise self._refused("rank")

    def trace(self, group: str = "all") -> TraceEstimate:
        """Sum of all eigenvalues, with its standard error; 0 where it is exact."""
        raise self._refused("trace")

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors in parameter space.

        Args:
            group: Parameter group.
            k: Number of eigenvectors; None for all that are known.
            samples: Restrict the matrix to these samples of the batch; None for all.

        Returns:
            Parameter name -> [K, *shape], ascending in their eigenvalues; each has norm 1 over
            the group.

        Raises:
            OptionError: Unknown group, k out of range, or a refusal.
        """
        raise self._refused("eigenvectors")

    def directions(
        self,
        group: str = "all",
        k: int | None = None,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> Directions:
        """Slopes and curvatures of every sample along the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for all that are known.
            grad_samples: Samples whose slopes are wanted; None for all.
            ggn_samples: Samples of which the matrix is made; None for all.

        Returns:
            The directions, ascending in their eigenvalues.

        Raises:
            OptionError: Unknown group, k out of range, or a refusal.
        """
        raise self._refused("directions")

    def newton_step(
        self,
        group: str = "all",
        k: int | None = None,
        damping: Damping = 0.0,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Damped Newton step in the span of the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for all that are known.
            damping: A number, [K] numbers, or a function of (eigenvalues, gammas, lambdas).
            grad_samples: Samples of which the gradient is taken; None for all.
            ggn_samples: Samples of which the matrix is made; None for all.

        Returns:
            Parameter name -> step [*shape]: sum over k of -slope_k / (curvature_k + damping_k)
            e_k.

        Raises:
            OptionError: As `directions`, or the damping does not fit.
        """
        raise self._refused("newton_step")

    def gradient(self, group: str = "all") -> dict[str, Tensor]:
        """Gradient of the loss, parameter name -> [*shape]; costs one backward pass."""
        raise self._refused("gradient")

    def gradient_norm_squared(self, group: str = "all") -> Tensor:
        """Squared norm of the loss's gradient with respect to the group, scalar."""
        raise self._refused("gradient_norm_squared")

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients g_n with respect to the group, [N]."""
        raise self._refused("gradient_norms")

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        raise self._refused("gradient_variance")

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """Empirical neural tangent kernel of the batch.

        Args:
            group: Parameter group.
            mode: ``full``: [N, N, D, D]; ``trace``: [N, N], summed over outputs; ``diagonal``:
                [N, N, D].

        Returns:
            The kernel in the layout of `mode`.

        Raises:
            OptionError: Unknown group or mode, or a refusal.
        """
        raise self._refused("ntk")

    def ntk_standard_error(self, group: str = "all") -> Tensor | None:
        """Standard error of the kernel's entries, [N, N]; None if they are exact."""
        return None

    def _refused(self, question: Question) -> OptionError:
        """The error that says why a question is not answered."""
        return OptionError(str(self.refusal(question)))
