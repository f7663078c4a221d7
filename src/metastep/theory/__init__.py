"""The theory of gradient-based meta-learning: pure functions from arrays to numbers.

Each function is one equation and says which, and whether it stands as printed or corrected; `cite`
gives the reference. Nothing here needs the rest of the library. Features are arrays of shape
(tasks, shots, dim), the loss is the mean (1/K) ||Phi w - y||^2, and rates are for that convention.
"""

from metastep.theory.adaptation import (
    AdaptationCurve,
    AfterSteps,
    adaptation_curve,
)
from metastep.theory.citations import (
    cite,
)
from metastep.theory.concentration import (
    concentration_bound,
    concentration_bound_as_printed,
    concentration_spread,
    gaussian_norm,
)
from metastep.theory.convergence import (
    adaptation_bias_bound,
    error_floor,
    iteration_bound,
    sampling_gap_bound,
)
from metastep.theory.descent import (
    largest_contracting_rate,
    largest_rate,
    log_contraction,
)
from metastep.theory.distances import (
    adapted_distance,
    distance_gap,
    distance_rate_bound,
    distance_rate_bound_as_printed,
    sign_change_rate,
)
from metastep.theory.estimators import (
    gram_limit_rate,
    hutchinson_limit_rate,
    label_aware_rate,
    limit_rate,
    predicted_gain,
)
from metastep.theory.features import (
    gaussian_features,
    identity_features,
    polynomial_features,
    random_matrix_features,
)
from metastep.theory.finite_tasks import (
    average_risk_rate,
    finite_task_coefficient,
    finite_task_scatter,
)
from metastep.theory.fixed_points import (
    quadratic_fixed_point,
    quadratic_meta_gradient,
)
from metastep.theory.gram_space import (
    LossParabola,
    MinimumNorm,
    SolveStatus,
    function_space_step,
    gram_label_aware_rate,
    gram_loss_parabola,
    minimum_norm_coefficients,
)
from metastep.theory.grams import (
    GramMoments,
    gram_eigenvalues,
    gram_moments,
)
from metastep.theory.hessian_free import (
    hessian_free_delta,
    hessian_free_step,
    hessian_vector_error_bound,
)
from metastep.theory.intervals import (
    EigenvalueBounds,
    RateInterval,
    eigenvalue_bounds,
    moment_interval_as_printed,
    rate_interval,
    rate_interval_as_printed,
)
from metastep.theory.layers import (
    layer_rates,
)
from metastep.theory.minimisers import (
    label_minimiser,
    minimiser,
    minimiser_shares,
)
from metastep.theory.mixed_linear import (
    best_test_rate,
    expected_test_loss,
    minimiser_distance,
)
from metastep.theory.moment_counts import (
    MomentCounts,
    polynomial_moment_counts,
)
from metastep.theory.moments import (
    gaussian_gram_moments,
    gaussian_split_rate,
    iid_gram_moments,
    iid_gram_moments_as_printed,
    many_shots_rate_as_printed,
    moment_rate,
    nonzero_mean_limit_rate,
    polynomial_gram_moments,
    polynomial_gram_moments_as_printed,
    single_shot_rate_as_printed,
    zero_mean_limit_rate,
)
from metastep.theory.multi_step import (
    multi_step_rate,
    step_schedule,
)
from metastep.theory.objective import (
    meta_gradient,
    meta_objective,
    sampled_meta_gradient,
    sampled_meta_objective,
)
from metastep.theory.printed import (
    RateRange,
    batch_rate,
    batch_rate_as_printed,
    heuristic_range_as_printed,
    heuristic_rate_as_printed,
    online_rate_as_printed,
    second_moment_rate,
)
from metastep.theory.raw_moments import (
    exponential_raw_moments,
    normal_raw_moments,
    uniform_raw_moments,
)
from metastep.theory.risk_curve import (
    RiskCurve,
    risk_curve,
    risk_curve_from_labels,
)
from metastep.theory.risks import (
    adapted_losses,
    average_risk,
    empirical_risk,
    limit_risk,
    risk_variance,
)
from metastep.theory.smoothness import (
    BatchSizes,
    batch_size_conditions,
    meta_smoothness,
    meta_step_size,
)
from metastep.theory.stability import (
    max_adaptation_rate,
    max_meta_rate,
    meta_hessian,
    negative_gradient_penalty,
    one_step_loss,
)
from metastep.theory.tangent import (
    tangent_features,
    tangent_gram,
)
from metastep.theory.two_layer import (
    TwoLayerNetwork,
    two_layer_network,
    two_layer_tangent_gram,
    two_layer_tangent_moments,
)

__all__ = [
    "AdaptationCurve",
    "AfterSteps",
    "BatchSizes",
    "EigenvalueBounds",
    "GramMoments",
    "LossParabola",
    "MinimumNorm",
    "MomentCounts",
    "RateInterval",
    "RateRange",
    "RiskCurve",
    "SolveStatus",
    "TwoLayerNetwork",
    "adaptation_bias_bound",
    "adaptation_curve",
    "adapted_distance",
    "adapted_losses",
    "average_risk",
    "average_risk_rate",
    "batch_rate",
    "batch_rate_as_printed",
    "batch_size_conditions",
    "best_test_rate",
    "cite",
    "concentration_bound",
    "concentration_bound_as_printed",
    "concentration_spread",
    "distance_gap",
    "distance_rate_bound",
    "distance_rate_bound_as_printed",
    "eigenvalue_bounds",
    "empirical_risk",
    "error_floor",
    "expected_test_loss",
    "exponential_raw_moments",
    "finite_task_coefficient",
    "finite_task_scatter",
    "function_space_step",
    "gaussian_features",
    "gaussian_gram_moments",
    "gaussian_norm",
    "gaussian_split_rate",
    "gram_eigenvalues",
    "gram_label_aware_rate",
    "gram_limit_rate",
    "gram_loss_parabola",
    "gram_moments",
    "hessian_free_delta",
    "hessian_free_step",
    "hessian_vector_error_bound",
    "heuristic_range_as_printed",
    "heuristic_rate_as_printed",
    "hutchinson_limit_rate",
    "identity_features",
    "iid_gram_moments",
    "iid_gram_moments_as_printed",
    "iteration_bound",
    "label_aware_rate",
    "label_minimiser",
    "largest_contracting_rate",
    "largest_rate",
    "layer_rates",
    "limit_rate",
    "limit_risk",
    "log_contraction",
    "many_shots_rate_as_printed",
    "max_adaptation_rate",
    "max_meta_rate",
    "meta_gradient",
    "meta_hessian",
    "meta_objective",
    "meta_smoothness",
    "meta_step_size",
    "minimiser",
    "minimiser_distance",
    "minimiser_shares",
    "minimum_norm_coefficients",
    "moment_interval_as_printed",
    "moment_rate",
    "multi_step_rate",
    "negative_gradient_penalty",
    "nonzero_mean_limit_rate",
    "normal_raw_moments",
    "one_step_loss",
    "online_rate_as_printed",
    "polynomial_features",
    "polynomial_gram_moments",
    "polynomial_gram_moments_as_printed",
    "polynomial_moment_counts",
    "predicted_gain",
    "quadratic_fixed_point",
    "quadratic_meta_gradient",
    "random_matrix_features",
    "rate_interval",
    "rate_interval_as_printed",
    "risk_curve",
    "risk_curve_from_labels",
    "risk_variance",
    "sampled_meta_gradient",
    "sampled_meta_objective",
    "sampling_gap_bound",
    "second_moment_rate",
    "sign_change_rate",
    "single_shot_rate_as_printed",
    "step_schedule",
    "tangent_features",
    "tangent_gram",
    "two_layer_network",
    "two_layer_tangent_gram",
    "two_layer_tangent_moments",
    "uniform_raw_moments",
    "zero_mean_limit_rate",
]
