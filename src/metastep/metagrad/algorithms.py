"""The algorithms by name: which meta-gradient, and whether the inner loop adapts only the head."""

import dataclasses
from collections.abc import Callable

from metastep._errors import check_choice
from metastep.adapt import GradientAdapter
from metastep.metagrad.baselines import JointTraining, Reptile
from metastep.metagrad.core import AbstractMetaGradient
from metastep.metagrad.through import Exact, FirstOrder, HessianFree
from metastep.models import Model


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A meta-learning algorithm: a meta-gradient handed a kind of adapter.

    Attributes
    ----------
    meta_gradient : makes the meta-gradient
    head_only : adapt only the head (ANIL)
    summary : one line for help texts and reports
    """

    meta_gradient: Callable[[], AbstractMetaGradient]
    head_only: bool
    summary: str

    def adapter(self, model: Model, steps: int) -> GradientAdapter:
        """The inner loop of this algorithm for a model."""
        return GradientAdapter(steps, model.is_head if self.head_only else None)


ALGORITHMS: dict[str, Algorithm] = {
    "maml": Algorithm(Exact, False, "exact second-order meta-gradient (Finn et al., 2017)"),
    "fomaml": Algorithm(FirstOrder, False, "first-order approximation of MAML"),
    "hfmaml": Algorithm(HessianFree, False, "Hessian-free MAML (Fallah et al., 2020)"),
    "anil": Algorithm(Exact, True, "adapt the head alone (Raghu et al., 2020)"),
    "reptile": Algorithm(
        Reptile, False, "move towards the adapted parameters (Nichol et al., 2018)"
    ),
    "erm": Algorithm(JointTraining, False, "joint training without an inner loop (alpha = 0)"),
}


def algorithm(name: str) -> Algorithm:
    """Look an algorithm up by name; an `InputError` lists the names."""
    check_choice("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
